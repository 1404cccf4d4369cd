"""What the commands that take a config share: flags, readable flag errors, logging, exit codes."""

import difflib
import importlib.util
import logging as std_logging
import os
import sys
import threading

from absl import app, flags, logging
from ml_collections import config_flags


def define_config():
    """Define `--config` with overridable fields; returns the flag holder."""
    return config_flags.DEFINE_config_file(
        "config", None, "Config file and variant, such as configs/pretrain.py:vitl16.", lock_config=True
    )


class _OwnLines(std_logging.Filter):
    """Drop what libraries say below a warning, and their stack traces.

    Orbax alone writes sixty lines a checkpoint, and a trace for an error that is raised and
    explained anyway.
    """

    def filter(self, record):
        if "jepa_jax" in record.pathname:
            return True
        record.exc_info = record.exc_text = None
        return record.levelno >= std_logging.WARNING


def _set_up_logging():
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.addFilter(_OwnLines())
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))


def _log_thread_error(failure):
    # Whatever a background thread fails with reaches the main thread too, which explains it.
    logging.warning("thread %s failed: %s", failure.thread.name, failure.exc_type.__name__)


def load_config(argument):
    """Load a config from `FILE:VARIANT`, unlocked."""
    path, _, variant = argument.partition(":")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"config file {path!r} does not exist; give its path from the current folder")
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


def override(config, arguments):
    """Set fields of an unlocked config as the commands with flags do.

    Args:
      config: ConfigDict, changed in place.
      arguments: list of `--config.section.field=value`.

    Raises:
      ValueError: if an argument is not of this form, a field does not exist, or a value is of the wrong kind.
    """
    values, argv = flags.FlagValues(), ["", *arguments]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=False, sys_argv=argv)
        left = values(argv)[1:]
    except (AttributeError, KeyError, flags.Error) as error:
        raise ValueError(f"cannot set {' '.join(arguments)}: {str(error).strip().splitlines()[-1]}") from error
    if left:
        raise ValueError(f"unexpected arguments {' '.join(left)}; fields are set with --config.section.field=value")


def _unknown_field(argv):
    """Find the first `--config.a.b` that does not exist and say what does, or return None."""
    values = dict(arg.lstrip("-").partition("=")[::2] for arg in argv[1:] if arg.startswith("-"))
    if not values.get("config"):
        return None
    for name in values:
        section, walked = load_config(values["config"]), "config"
        for key in name.split(".")[1:] if name.startswith("config.") else ():
            if not hasattr(section, "keys") or key not in section:
                known = sorted(section.keys()) if hasattr(section, "keys") else []
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                return f"--{name}: {walked} has no field {key!r}; {hint}It has: {', '.join(known) or 'no fields'}"
            section, walked = section[key], f"{walked}.{key}"
    return None


def _parse(argv):
    try:
        left = flags.FLAGS(argv)
        # A file that cannot be read shows only when the config is first used.
        if flags.FLAGS.config is not None:
            flags.FLAGS.config.keys()
        return left
    except (AttributeError, KeyError):
        message = _unknown_field(argv)
        if message is None:
            raise
    except OSError as error:
        # The message lists every folder that was tried; the file named is what matters.
        message = f"cannot read the config file: {error}".splitlines()[0]
        message += "".join(f"; {line.strip()}" for line in str(error).splitlines() if "[Errno" in line)
    except flags.Error as error:
        # A failing config file arrives with its whole stack trace; the last line is the message.
        message = str(error).strip().splitlines()[-1].strip() if "Traceback" in str(error) else str(error)
    sys.stderr.write(f"{message}\nUse --help for the flags, and read the config file for its fields.\n")
    sys.exit(2)


def run(main, required):
    """Parse flags, set up logging, call `main(argv)` and exit with what it returns.

    Args:
      main: list of left-over arguments -> exit code.
      required: names of flags that must be given.
    """
    flags.mark_flags_as_required(required)
    _set_up_logging()
    threading.excepthook = _log_thread_error
    app.run(lambda argv: sys.exit(main(argv)), flags_parser=_parse)
