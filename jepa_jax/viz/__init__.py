"""Pictures of a run, made from what lies in its workdir."""
