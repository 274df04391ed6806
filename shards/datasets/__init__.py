"""One short reader for each public dataset: its annotation files, as they were published, to clips.

A reader is called with the Root, or the dataset's Folder, and, where a dataset has parts, the
part's name. It returns Clips, which can be iterated again and again and are never all in memory:
dicts with `id`; `sound`, the names that the clip's audio may have; and what is known of the clip:
`labels`, a list; or `caption`, or `captions`; or `question` and `answer`. Where it has one, a clip
also has its id on `youtube` or `freesound`, or its `file` name in Clotho: they keep training and
test apart. `drop` is a reason to leave the clip out: its dataset's makers exclude it, or it lacks a
text. `place` is its file and line.

Readers raise DataError, naming the file and the line, on anything that is not as published.
Labels are readable ("mouse_click" is "mouse click"); lists of labels keep the dataset's own order.
"""

from shards.datasets.captions import *  # noqa: F403, all readers
from shards.datasets.labels import *  # noqa: F403
from shards.datasets.questions import *  # noqa: F403
