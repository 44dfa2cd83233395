"""Classification networks, one family a file: code, then VARIANTS, STAGES and WEIGHTS."""
