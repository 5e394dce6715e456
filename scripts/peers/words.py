"""Count the words of a package's README, as its metadata ships it, before the first command or snippet that trains.

words.py DISTRIBUTION PATTERN counts prose and code up to the line that PATTERN matches, or all without such a line.
Words are runs of characters with a letter or digit in them, between blanks. Not counted: HTML tags and comments,
images, targets of links, lines of tables.
"""

import re
import sys
from importlib.metadata import metadata

text = metadata(sys.argv[1]).get_payload() or metadata(sys.argv[1])["Description"]
text = re.sub(r"<!--.*?-->|<[^>]+>", " ", text, flags=re.DOTALL)
text = re.sub(r"!\[[^]]*\]\([^)]*\)", " ", text)
text = re.sub(r"\]\([^)]*\)", "]", text)
lines = [line for line in text.splitlines() if not line.lstrip().startswith("|")]
first = next((n for n, line in enumerate(lines) if re.search(sys.argv[2], line)), None)
words = [word for line in lines[:first] for word in line.split() if re.search(r"\w", word)]
print(sys.argv[1], len(words), "words", "in all, no such line" if first is None else f"before: {lines[first].strip()}")
