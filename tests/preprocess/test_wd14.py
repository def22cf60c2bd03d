import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_tagger import SIDE, TAGS, TinyTagger, as_seen, draw

from preprocess.wd14 import WD14, load_tagger, open_session
from preprocess.wd14_files import find_tagger

ROOT = Path(__file__).parents[2]


def test_images_are_prepared_as_taggers_want_them(tmp_path):
    model = load_tagger(find_tagger(str(TinyTagger().save(tmp_path / "tagger"))))
    for size in ((8, 3), (5, 8), (8, 8)):
        draw(tmp_path / "image.png", size, seed=1)
        prepared = model.prepare(Image.open(tmp_path / "image.png"))
        np.testing.assert_array_equal(prepared, as_seen(tmp_path / "image.png"))
    prepared = model.prepare(Image.new("RGB", (80, 40), (10, 20, 30)))  # ten to one pixel
    assert prepared[4, :].tolist() != prepared[0, :].tolist() == [[255, 255, 255]] * SIDE
    prepared = model.prepare(Image.new("RGB", (3, 3), (10, 20, 30)))
    assert (prepared == (30, 20, 10)).all()
    noise = np.random.default_rng(0).integers(0, 255, (21, 13, 3), dtype=np.uint8)
    square = Image.fromarray(np.pad(noise, ((0, 0), (4, 4), (0, 0)), constant_values=255))
    wanted = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))[:, :, ::-1]
    np.testing.assert_array_equal(model.prepare(Image.fromarray(noise)), wanted)


def test_other_models_are_recognised(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    shape = ["batch", 3, SIDE, SIDE]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Sigmoid", ["x"], ["y"])], "g", *zip(values))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx", device="cpu", name="m")
    with pytest.raises(ValueError, match=r"takes tensor\(float\) of shape .* which no WD14 tagger"):
        WD14(session, output="y", name="m")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs, serving a directory's files."""

    def __init__(self, *args, directory, **kwargs):
        self.directory = directory
        super().__init__(*args, **kwargs)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.paths.append((self.command, self.path))
        if self.path.startswith("/api/models/me/taggers"):
            files = [p for p in sorted(self.directory.rglob("*")) if p.is_file()]
            names = [p.relative_to(self.directory).as_posix() for p in files]
            info = {"id": "me/taggers", "sha": "1" * 40}
            content = json.dumps({**info, "siblings": [{"rfilename": n} for n in names]}).encode()
        elif self.path.startswith("/me/taggers/resolve/"):
            content = (self.directory / self.path.split("/", 5)[5]).read_bytes()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path):
    directory = TinyTagger().save(tmp_path / "repository")
    TinyTagger(seed=1).save(directory / "in" / "side", tags="tags_info.csv")
    (directory / "saved_model.pb").write_bytes(b"\0" * 1000)
    handler = functools.partial(Hub, directory=directory)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.paths = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


FIND = """
import sys
from preprocess.wd14_files import find_tagger
for model in sys.argv[1:]:
    try:
        files = find_tagger(model)
        print(files.id, files.sha256[:8], files.model.name, len(files.read_tags()))
    except ValueError as error:
        print(error)
"""


def test_taggers_are_fetched_from_the_hub_once(hub, tmp_path):
    url = f"http://127.0.0.1:{hub.server_address[1]}"
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": url}
    models = ("me/taggers", "me/taggers/in/side", "me/taggers/in/side/model.onnx", "me/absent")
    done = run_python(FIND, *models, cwd=ROOT, **home, HF_HUB_OFFLINE="0")
    plain, side, file, absent = done.stdout.splitlines()
    assert plain.startswith("me/taggers ")
    assert plain.endswith(f" model.onnx {len(TAGS)}")
    assert side.split()[1] == file.split()[1] != plain.split()[1]
    assert absent.startswith("me/absent: there is no such directory here, and the Hugging Face hub")
    assert not any("saved_model" in path for _, path in hub.paths)
    asked = len(hub.paths)
    again = run_python(FIND, *models[:3], cwd=ROOT, **home, HF_HUB_OFFLINE="0")
    assert again.stdout.splitlines() == [plain, side, file]
    assert len(hub.paths) == asked


def run_python(*code_and_arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-c", *code_and_arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
