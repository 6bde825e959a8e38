"""Segment Anything's weights: fetching them from a server that lives in the test, and reading the file."""

import errno
import hashlib
import pickle
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cgc.errors import InputError
from cgc.masks import checkpoints
from cgc.masks.checkpoints import OFFICIAL, Weights, build, cache_folder, fetch, read_weights
from cgc.masks.sam import SegmentAnything

BODY = bytes(range(256)) * 12_000  # 3 MB


class Server(ThreadingHTTPServer):
    """What it sends, how, and what was asked of it."""

    body, ranges, whole, late, unsaid = BODY, True, None, 0, False
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.cut, self.refuse = [], [], []  # cut: bytes after which each connection breaks off

    def handle_error(self, *_):
        """Say nothing of connections that the other side closes."""

    @property
    def weights(self):
        url = f"http://127.0.0.1:{self.server_port}/model_abc123.pth"
        return Weights(url, len(BODY), hashlib.sha256(BODY).hexdigest())


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.server.refuse and (code := self.server.refuse.pop(0)):
            self.send_error(code)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.ranges else 0
        body = self.server.body[start:]
        if start >= len(self.server.body) > 0:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            total = self.server.whole or len(self.server.body)
            self.send_header("Content-Range", f"bytes {start + self.server.late}-{len(self.server.body) - 1}/{total}")
        if not self.server.unsaid:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cut:
            body = body[: self.server.cut.pop(0)]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server, folder, **settings_):
    return fetch(server.weights, folder, quiet=True, patience=0.0, **settings_)


def test_a_file_is_fetched_once(server, tmp_path):
    path = get(server, tmp_path / "new" / "folder")
    assert path.name == "model_abc123.pth" and path.read_bytes() == BODY
    assert list(path.parent.iterdir()) == [path]
    assert get(server, path.parent) == path and server.asked == [None]


def test_the_bar_counts_megabytes(server, tmp_path, capsys, monkeypatch):
    import cgc.progress

    monkeypatch.setattr(cgc.progress, "SECONDS_BETWEEN_LINES", 0.0)
    fetch(server.weights, tmp_path, patience=0.0)
    assert re.search(r"model_abc123.pth \(MB\) .*step [234]/4", capsys.readouterr().out)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_again(server, tmp_path, ranges):
    server.ranges = ranges
    server.cut = [1_000_000, 1_500_000]
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked == [None, "bytes=1000000-", "bytes=2500000-" if ranges else "bytes=1500000-"]


def test_it_goes_on_where_another_run_stopped(server, tmp_path):
    (tmp_path / "model_abc123.pth.partial").write_bytes(BODY[:2_000_000])
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked == ["bytes=2000000-"]


def test_a_finished_part_is_only_checked(server, tmp_path):
    (tmp_path / "model_abc123.pth.partial").write_bytes(BODY)
    assert get(server, tmp_path).read_bytes() == BODY and not server.asked


def test_what_is_longer_than_the_file_is_no_part_of_it(server, tmp_path):
    (tmp_path / "model_abc123.pth.partial").write_bytes(BODY + b"x")
    assert get(server, tmp_path).read_bytes() == BODY and server.asked == [None]


def test_a_part_that_the_server_does_not_know_is_dropped(server, tmp_path):
    (tmp_path / "model_abc123.pth.partial").write_bytes(BODY[:100])
    server.refuse = [416]
    assert get(server, tmp_path).read_bytes() == BODY and server.asked == ["bytes=100-", None]


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.refuse = [503, 429, 500]
    assert get(server, tmp_path).read_bytes() == BODY and len(server.asked) == 4


def test_a_wrong_hash_removes_the_file_and_is_said(server, tmp_path):
    server.body = BODY[:-1] + b"!"
    with pytest.raises(InputError, match=r"is not what was published \(SHA-256 .* and is removed; run the same"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_another_file_is_found_by_the_hash(server, tmp_path):
    (tmp_path / "model_abc123.pth.partial").write_bytes(b"?" * 1000)
    with pytest.raises(InputError, match="is removed"):
        get(server, tmp_path)
    assert get(server, tmp_path).read_bytes() == BODY


def test_a_login_page_is_no_weights(server, tmp_path):
    server.body = b"<html>Please log in</html>"
    with pytest.raises(InputError, match=r"another file than the 3,072,000 bytes .*login page.*--checkpoint PATH"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_rest_of_another_file_is_refused(server, tmp_path):
    (tmp_path / "model_abc123.pth.partial").write_bytes(BODY[:100])
    server.whole = len(BODY) + 5
    with pytest.raises(InputError, match="another file"):
        get(server, tmp_path)


def test_it_gives_up_where_nothing_new_comes_and_keeps_the_part(server, tmp_path):
    server.cut = [1_000_000] + [0] * 20
    with pytest.raises(InputError, match=r"broke off.*it goes on where it stopped.*--generator regions"):
        get(server, tmp_path)
    assert len(server.asked) == 1 + checkpoints.ATTEMPTS
    assert (tmp_path / "model_abc123.pth.partial").read_bytes() == BODY[:1_000_000]
    server.cut = []
    assert get(server, tmp_path).read_bytes() == BODY


def test_another_rest_than_was_asked_for_is_refused(server, tmp_path):
    (tmp_path / "model_abc123.pth.partial").write_bytes(BODY[:100])
    server.late = 1
    with pytest.raises(InputError, match="another file"):
        get(server, tmp_path)


def test_a_file_without_an_end_is_refused(server, tmp_path):
    server.unsaid = True
    assert get(server, tmp_path / "right").read_bytes() == BODY
    server.body = BODY + b"x"
    with pytest.raises(InputError, match="sent more than the 3,072,000 bytes"):
        get(server, tmp_path / "longer")


@pytest.mark.parametrize("code", [403, 404])
def test_a_refusal_is_said_at_once(server, tmp_path, code):
    server.refuse = [code] * 9
    with pytest.raises(InputError, match="could not be downloaded"):
        get(server, tmp_path)
    assert len(server.asked) == 1


def test_no_network_is_said_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    closed = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    closed.server_close()
    weights = Weights(f"http://127.0.0.1:{closed.server_port}/model.pth", 10, "0" * 64)
    with pytest.raises(InputError, match=r"give --checkpoint PATH, or use the masks that need no weights: --generator"):
        fetch(weights, tmp_path, quiet=True, patience=60.0)


def test_a_full_disk_is_said_before_anything_is_asked(server, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 1000))
    with pytest.raises(InputError, match=r"the disk is full: .*0.0 GB are free where 0.0 GB are needed.*CGC_CACHE"):
        get(server, tmp_path)
    assert not server.asked


def test_a_disk_that_fills_up_is_said_and_the_part_kept(server, tmp_path, monkeypatch):
    import builtins

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, block):
            if self.file.tell() > 2_000_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(block)

    real = builtins.open
    monkeypatch.setattr(checkpoints, "open", lambda *a: Full(real(*a)), raising=False)
    with pytest.raises(InputError, match=r"the disk is full: .*goes on where it stopped"):
        get(server, tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert get(server, tmp_path).read_bytes() == BODY and server.asked[-1].startswith("bytes=2")


def test_a_folder_that_is_none_is_said(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="could not be written"):
        get(server, tmp_path / "file" / "folder")


def test_a_truncated_copy_in_the_cache_is_said(server, tmp_path):
    (tmp_path / "model_abc123.pth").write_bytes(BODY[:5])
    with pytest.raises(InputError, match=r"has 5 bytes where 3,072,000 were expected.*remove it"):
        get(server, tmp_path)
    assert (tmp_path / "model_abc123.pth").exists()


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"CGC_CACHE": "/a", "TORCH_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/a"),
        ({"TORCH_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub/checkpoints"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/cgc"),
        ({"CGC_CACHE": "", "HOME": "/d"}, "/d/.cache/cgc"),
    ],
)
def test_where_weights_are_kept(monkeypatch, variables, folder):
    for name in ("CGC_CACHE", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


def test_official_weights_are_consistent():
    assert set(OFFICIAL) == {"vit_b", "vit_l", "vit_h"}
    for kind, weights in OFFICIAL.items():
        assert weights.name.startswith(f"sam_{kind}_") and re.fullmatch("[0-9a-f]{64}", weights.sha256)
        parameters = {"vit_b": 91e6, "vit_l": 308e6, "vit_h": 636e6}[kind]  # as the paper counts them
        assert weights.size == pytest.approx(4 * parameters, rel=0.04)


# --- reading ---


@pytest.fixture(scope="module")
def vit_b(tmp_path_factory):
    """Weights of the right shapes, all zero, in a file of the official name; the file is sparse in content only."""
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        shapes = {name: v.shape for name, v in sam_model_registry["vit_b"]().state_dict().items()}
    zero = torch.zeros(1)
    return {name: zero.expand(shape) for name, shape in shapes.items()}  # one number in memory, and in the file


def save(state, path):
    torch.save(state, path)
    return path


def test_the_model_is_told_by_its_weights(vit_b, tmp_path):
    path = save(vit_b, tmp_path / "any_name.pth")
    assert path.stat().st_size < 1e6
    assert read_weights(path)[0] == "vit_b"
    assert read_weights(save({"model": vit_b}, tmp_path / "wrapped.pth"))[0] == "vit_b"
    for kind, width in (("vit_l", 1024), ("vit_h", 1280)):
        state = vit_b | {"image_encoder.patch_embed.proj.weight": torch.zeros(1).expand(width, 3, 16, 16)}
        assert read_weights(save(state, tmp_path / f"{kind}.pth"))[0] == kind
    old = tmp_path / "old_format.pth"
    torch.save(vit_b, old, _use_new_zipfile_serialization=False)
    assert read_weights(old)[0] == "vit_b"


def test_the_model_is_built_with_the_weights(vit_b, tmp_path):
    state = vit_b | {"mask_decoder.iou_token.weight": torch.arange(256.0)[None].half()}
    settings_ = SegmentAnything(checkpoint=save(state, tmp_path / "mine.pth"), device="cpu")
    generator = settings_.load(quiet=True)  # by its weights, not by `model`
    assert generator.name.startswith("segment-anything vit_b 1.") and generator.name.endswith(", mine.pth")
    kind, model = build(tmp_path / "mine.pth")
    assert kind == "vit_b" and not model.training
    assert torch.equal(model.mask_decoder.iou_token.weight[0], torch.arange(256.0))
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
    assert model.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])


def test_weights_are_fetched_where_none_are_given(vit_b, tmp_path, monkeypatch):
    asked = []

    def fetched(weights, *, quiet):
        asked.append((weights, quiet))
        return save(vit_b, tmp_path / "sam.pth")

    monkeypatch.setattr(checkpoints, "fetch", fetched)
    name = SegmentAnything(model="vit_b", device="cpu").load(quiet=True).name
    assert name.startswith("segment-anything vit_b 1.") and "," not in name
    assert asked == [(OFFICIAL["vit_b"], True)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mask_decoder.iou_token.weight": None}, "iou_token.weight missing, unknown or of another shape"),
        ({"extra": torch.zeros(2)}, "does not fit Segment Anything's vit_b: extra missing, unknown"),
        ({"mask_decoder.iou_token.weight": torch.zeros(2, 256)}, "iou_token.weight missing, unknown or of another"),
        ({"mask_decoder.iou_token.weight": torch.full((1, 256), float("nan"))}, "not finite"),
        ({"mask_decoder.hf_token.weight": torch.zeros(2)}, "weights of HQ-SAM"),
        ({"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(2)}, "weights of MobileSAM"),
        ({"image_encoder.trunk.patch_embed.proj.weight": torch.zeros(2)}, "weights of SAM 2"),
        ({"image_encoder.patch_embed.proj.weight": torch.zeros(7, 3, 16, 16)}, "no weights of Segment Anything"),
        ({"image_encoder.patch_embed.proj.weight": torch.zeros(())}, "no weights of Segment Anything"),
        ({"image_encoder.patch_embed.proj.weight": None}, "no weights of Segment Anything"),
    ],
)
def test_weights_of_another_model_are_said(vit_b, tmp_path, change, said):
    state = {k: v for k, v in (vit_b | change).items() if v is not None}
    with pytest.raises(InputError, match=said):
        build(save(state, tmp_path / "w.pth"))


class Evil:
    def __reduce__(self):
        return (print, ("this must never be printed",))


@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: {"model": e}])
def test_nothing_in_a_file_is_run(tmp_path, capsys, wrap):
    save(wrap(Evil()), tmp_path / "zip.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(wrap(Evil())))
    for name in ("zip.pth", "raw.pth"):
        with pytest.raises(InputError, match=r"holds no weights alone|cannot be read"):
            read_weights(tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, {1: torch.zeros(1)}, torch.zeros(3), {}, None, {"model": None}])
def test_what_is_no_model_is_said(tmp_path, value):
    with pytest.raises(InputError, match="no weights of"):
        read_weights(save(value, tmp_path / "w.pth"))


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match=r"do not exist; give --checkpoint the path of .* sam_vit_b_01ec64.pth"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(InputError, match="do not exist"):
        read_weights(tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), old=st.booleans())
def test_broken_files_end_in_a_sentence(tmp_path, data, old):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.arange(4.0)}, path, _use_new_zipfile_serialization=not old)
    content = bytearray(path.read_bytes())
    cut = data.draw(st.integers(0, len(content)))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)):
        content[at] = value
    path.write_bytes(content[: cut if data.draw(st.booleans()) else len(content)])
    with pytest.raises(InputError):  # even whole, it is no model's
        read_weights(path)
