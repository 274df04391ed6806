"""Small annotation files and sounds, written as the datasets' owners publish them."""

import io

import numpy as np
import soundfile as sf

from data import Source, read_source

HEAD = "audiocap_id,youtube_id,start_time,caption\n"


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def wav(path, seconds=0.1, rate=8000, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    wave = np.sin(np.arange(int(rate * seconds)) * len(path.name) / 30) * 0.3
    sf.write(buffer, wave, rate, **{"format": "WAV"} | kwargs)
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def made(folder, **kwargs):
    return list(read_source(Source(folder), **kwargs))


def small(root, n=40):
    """An AudioCaps of n captions, whose evaluation set shares one caption and one clip with it."""
    rows = "".join(f'{i},{i:011d},{i % 9},"A dog, and number {i}"\r\n' for i in range(n))
    write(root / "audiocaps/train.csv", HEAD + rows)
    shared = "1,aaaaaaaaaaa,30,a dog and NUMBER 3!\r\n2,00000000005,30,Quite another\r\n"
    write(root / "audiocaps/test.csv", HEAD + shared)
    return root


def openaqa_row(audio_id, dataset="as_20k", task="open-ended", instruction="?", output="!"):
    return locals() | {"input": ""}


def talk(name, question, answer):
    """A row of MusicQA."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"audio_name": name, "conversation": turns}


def run(builder, root, out, *args):
    """Runs a builder's command on the datasets under root."""
    builder.main([*args, "--root", str(root), "--out", str(out)])


def real_root(shared, root):
    """The real files, laid out as their owners publish them."""
    for folder in (shared / "data").iterdir():
        if folder.is_dir() and folder.name not in ("mmau", "esc10", "gpt2_tokenizer"):
            (root / folder.name).mkdir()
            for f in folder.iterdir():
                (root / folder.name / f.name).symlink_to(f)
    (root / "mmau").mkdir()
    (root / "mmau/mmau-test-mini.json").symlink_to(shared / "data/mmau/mmau-test-mini-300.json")
    (root / "esc50/audio").symlink_to(shared / "data/esc10")
    return root
