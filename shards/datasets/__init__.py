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

# ruff: noqa: F401
from shards.datasets.captions import (
    audiocaps,
    audiocaps_clips,
    clotho,
    lp_musiccaps,
    macs,
    musiccaps,
    song_describer,
    wavcaps,
)
from shards.datasets.labels import (
    audioset,
    audioset_strong,
    beijing_opera,
    cremad,
    dcase2017,
    esc50,
    fsd50k,
    gtzan,
    ravdess,
    sesa,
    tut2017,
    urbansound8k,
    vggsound,
    vocalsound,
)
from shards.datasets.questions import airbench, clothoaqa, mmau, musicqa, openaqa
