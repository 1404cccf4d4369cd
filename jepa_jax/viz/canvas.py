"""What all pictures share: the figure, its colours, and writing it to disk."""

import functools
import os

import cv2
import numpy as np
from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

# Told apart by people who confuse red and green, and in grey print.
BLUE, ORANGE, GREEN, PURPLE, GREY, SKY = "#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#718096", "#63b3ed"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, GREY, SKY)
_DPI = 130
# Sides of a picture's frames, pixels: smaller ones look blocky, larger ones only cost bytes.
_SHOWN_PIXELS = 256
# Fonts with letters that matplotlib's own has not, such as Chinese; those that are installed are used.
_OTHER_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR", "Source Han Sans",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "IPAGothic", "IPAexGothic", "TakaoPGothic", "NanumGothic",
    "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS",
    "Unifont",
)  # fmt: skip


class PictureError(Exception):
    """Say why a picture cannot be made."""


def make_figure(width, height, title, subtitle=""):
    """Make an empty figure with a title.

    Args:
      width, height: inches.
      title: bold first line.
      subtitle: smaller line or lines below it.

    Returns:
      matplotlib `Figure`, owned by the caller; no global state is touched.
    """
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
    # Room for labels that end at the border.
    figure.get_layout_engine().set(w_pad=0.1)
    blank = "\n" * (1 + subtitle.count("\n"))
    figure.suptitle(f"{title}{blank}", x=0.01, ha="left", fontsize=13, fontweight="bold")
    # A second text at the place of the blank lines, so that its weight can differ.
    figure.text(0.01, 1 - 0.33 / height, subtitle, ha="left", va="top", fontsize=9.5, color="#4a5568")
    return figure


def show_image(axes, image):
    """Draw a picture `[H, W, 3]` (uint8, or float in 0..1) without axes around it."""
    axes.imshow(image, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def label_row(axes, text):
    """Write the name of a row of pictures to the left of its first axes."""
    axes.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9.5, labelpad=8)


def enlarge(frames, pixels=_SHOWN_PIXELS):
    """Enlarge small frames smoothly.

    Args:
      frames: uint8 `[T, H, W, 3]`.
      pixels: the short side is multiplied by a whole number to come near this.

    Returns:
      uint8 `[T, kH, kW, 3]`.
    """
    height, width = frames.shape[1:3]
    factor = max(1, round(pixels / min(height, width)))
    if factor == 1:
        return frames
    size = (width * factor, height * factor)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in frames])


@functools.cache
def _fonts():
    """Return the names of the fonts to draw with, and the code points that they have together."""
    installed = set(font_manager.get_font_names())
    families = [*rcParams["font.family"], *(name for name in _OTHER_FONTS if name in installed)]
    found = [font_manager.get_font(font_manager.findfont(FontProperties(family=[name]))).get_charmap() for name in families]
    return families, set().union(*found)


def legible(text):
    """Write letters that no font has as escapes, such as \\u732b: boxes would all look the same."""
    known = _fonts()[1]
    return "".join(
        letter if ord(letter) in known or letter.isspace() else letter.encode("ascii", "backslashreplace").decode()
        for letter in text
    )


def save_figure(figure, path):
    """Write a figure as PNG, making the folder; a picture already there is replaced in one go.

    Its texts are drawn in all fonts that it takes, and made `legible`.

    Raises:
      OSError: if the folder cannot be written.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    for text in figure.findobj(Text):
        if not text.get_text().isascii():
            text.set_text(legible(text.get_text()))
            text.set_fontfamily(_fonts()[0])
    # A viewer that has the old picture open never sees half of the new one.
    partial = f"{path}.partial"
    figure.savefig(partial, format="png")
    os.replace(partial, path)
