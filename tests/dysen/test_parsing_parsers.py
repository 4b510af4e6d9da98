"""Parsers one by one: blobs and real networks, a vision model behind a server, annotation files in their published layout."""

import json
import pickle
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from dysen.parsing.annotations import ActionGenome, ActivityNetEntities
from dysen.parsing.detectors import Blobs, OpenCV, Torchvision
from dysen.parsing.frames import Link, Seen
from dysen.parsing.merging import Merging
from dysen.parsing.parsers import Detection
from dysen.parsing.relations import Relations
from dysen.parsing.tracking import Tracker
from dysen.parsing.vision import VisionModel, VisionParser, read_answer
from vdm.errors import ConfigError, DataError, PlanError

BLOBS = Blobs(hues={"red": 0, "green": 128, "blue": 228}, chroma=60, least=0.01, join=0.1, label="thing")
RELATIONS = Relations(
    beside=0.1,
    inside=0.9,
    overlapping=0.1,
    near=0.5,
    seconds=0.1,
    moving=0.03,
    growing=1.1,
    toward=0.95,
    neighbours=None,
)
SIZES = {"frames": 20, "height": 50, "width": 100}


def picture(*boxes, size=(40, 40)):
    frame = np.full((*size, 3), 120, np.uint8)
    for colour, (x1, y1, x2, y2) in boxes:
        frame[y1:y2, x1:x2] = colour
    return frame


RED, BLUE = (220, 30, 30), (40, 70, 220)

# ---- pictures


def test_blobs_are_found_where_they_are():
    found = BLOBS.detect(picture((RED, (5, 6, 15, 20)), (BLUE, (20, 20, 30, 30)), (RED, (38, 38, 39, 39))))
    assert [(seen.label, seen.box, seen.attributes) for seen in found] == [
        ("red thing", (5, 6, 15, 20), ("red",)), ("blue thing", (20, 20, 30, 30), ("blue",))]  # fmt: skip
    assert BLOBS.detect(picture()) == []


def test_a_blob_that_another_one_cuts_in_two_is_one_and_two_far_ones_are_two():
    cut = picture((RED, (5, 5, 25, 15)), (BLUE, (13, 2, 16, 30)))
    assert [seen.box for seen in BLOBS.detect(cut) if seen.label == "red thing"] == [(5, 5, 25, 15)]
    assert len(BLOBS.detect(picture((RED, (0, 0, 8, 8)), (RED, (30, 30, 38, 38))))) == 2


def test_patches_with_holes_and_arms_are_one():
    frame = picture((RED, (5, 5, 30, 30)), ((120,) * 3, (8, 8, 27, 27)), ((120,) * 3, (15, 4, 20, 9)))  # a broken ring
    strict = Blobs(hues={"red": 0}, chroma=60, least=0.0, join=0.0, label="thing")
    assert [seen.box for seen in strict.detect(frame)] == [(5, 5, 30, 30)]


def test_one_thing_with_two_labels_is_one():
    class Twice:
        def detect(self, frame):
            box = (10.0, 10.0, 20.0, 20.0)
            return [Seen(0, "truck", box, 0.5), Seen(1, "car", box, 0.9), Seen(2, "dog", (30.0, 30.0, 35.0, 35.0), 0.7)]

    tracker = Tracker(overlap=0.2, reach=1.0, patience=1, num_hits=1, momentum=0.5, relabel=0.7)
    parser = Detection(detector=Twice(), tracker=tracker, relations=RELATIONS, same=0.8)
    graphs = parser.parse(np.zeros((3, 40, 40, 3), np.uint8), "", 8.0, {})
    assert [[seen.label for seen in graph.objects] for graph in graphs] == [["car", "dog"]] * 3


OPENCV = {"config": None, "size": 300, "mean": 0.0, "scale": 1.0, "labels": None, "first_label": 1, "min_score": 0.4,
          "keep": None, "threads": 1}  # fmt: skip


def test_a_detector_without_its_weights_says_so(tmp_path):
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        OpenCV(weights=None, **OPENCV)
    with pytest.raises(ConfigError, match="detector.weights"):
        OpenCV(weights=str(tmp_path / "gone.pb"), **OPENCV)
    (tmp_path / "junk.pb").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="detector"):  # no OpenCV, or a file it cannot read
        OpenCV(weights=str(tmp_path / "junk.pb"), **OPENCV)
    with pytest.raises(ConfigError, match="knows no such class"):
        OpenCV(weights=str(tmp_path / "junk.pb"), **OPENCV | {"keep": ["unicorn"]})


def test_rows_of_an_ssd_become_boxes_inside_the_picture(tmp_path, monkeypatch):
    """OpenCV is optional: a stand-in answers what the network would."""
    rows = [[0, 1, 0.9, 0.1, 0.2, 0.5, 1.2], [0, 3, 0.8, 0.5, 0.0, 1.0, 0.5], [0, 1, 0.3, 0.0, 0.0, 1.0, 1.0],
            [0, 12, 0.9, 0.0, 0.0, 1.0, 1.0], [0, 18, 0.9, 1.1, 0.0, 1.3, 1.0]]  # fmt: skip
    asked = {}

    class Net:
        def setInput(self, blob):
            asked["blob"] = blob

        def forward(self):
            return np.array(rows, np.float32)[None, None]

    def blob_of(frame, scale, size, mean, swapRB):
        return frame.shape, scale, size, mean, swapRB

    dnn = types.SimpleNamespace(readNet=lambda *files: asked.update(files=files) or Net(), blobFromImage=blob_of)
    stand_in = types.SimpleNamespace(dnn=dnn, setNumThreads=lambda n: None, error=ValueError)
    monkeypatch.setitem(sys.modules, "cv2", stand_in)
    for name in ("net.pb", "net.pbtxt"):
        (tmp_path / name).write_bytes(b"x")
    settings = OPENCV | {"config": str(tmp_path / "net.pbtxt")}
    detector = OpenCV(weights=str(tmp_path / "net.pb"), **settings)
    found = detector.detect(np.zeros((50, 100, 3), np.uint8))
    assert [seen.label for seen in found] == ["person", "car"]  # the others: doubtful, no class, outside
    np.testing.assert_allclose(found[0].box, (10, 10, 50, 50), rtol=1e-5)
    assert asked["files"] == (str(tmp_path / "net.pb"), str(tmp_path / "net.pbtxt"))
    assert asked["blob"][4] is False, "frames are RGB already"
    only = OpenCV(weights=str(tmp_path / "net.pb"), **settings | {"keep": ["car"]})
    assert [seen.label for seen in only.detect(np.zeros((50, 100, 3), np.uint8))] == ["car"]


def test_a_detector_of_torchvision_from_a_file(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    import torch
    import torchvision.ops
    from torchvision.models import get_model

    # Its compiled part may not fit the installed torch; which boxes are kept is not what is tested here.
    monkeypatch.setattr(
        torchvision.ops.boxes, "nms", lambda boxes, scores, threshold: scores.argsort(descending=True)[:5]
    )

    name = "ssdlite320_mobilenet_v3_large"
    net = get_model(name, weights=None, weights_backbone=None, num_classes=91)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    detector = Torchvision(model=name, weights=str(tmp_path / "net.pt"), min_score=0.0, keep=None, device="cpu")
    frame = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    found = detector.detect(frame)
    assert found
    for seen in found:
        assert 0 <= seen.box[0] < seen.box[2] <= 64
        assert seen.label in detector.labels.values()
    assert detector.fingerprint()["weights"]
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="not the weights"):
        Torchvision(model=name, weights=str(tmp_path / "junk.pt"), min_score=0.0, keep=None, device="cpu")
    with pytest.raises(ConfigError, match="no such detector"):
        Torchvision(model="yolo", weights=str(tmp_path / "net.pt"), min_score=0.0, keep=None, device="cpu")

    def misfit(*_):
        raise RuntimeError("Couldn't load custom C++ ops")

    monkeypatch.setattr(torchvision.ops.boxes, "nms", misfit)
    with pytest.raises(ConfigError, match="needs torchvision"):
        Torchvision(model=name, weights=str(tmp_path / "net.pt"), min_score=0.0, keep=None, device="cpu")


# ---- a vision model

DOG = {"objects": [{"name": "dog", "attributes": ["brown"], "box": [100, 200, 300, 400]}],
       "actions": [{"subject": "dog", "predicate": "chasing", "object": "ball"}], "relations": []}  # fmt: skip
NOBODY = {"objects": [], "actions": [], "relations": []}


class Eyes:
    """A server that keeps what it was asked and gives prepared answers, the last one again and again."""

    def __init__(self, *answers):
        self.answers, self.seen = list(answers), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                body = json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def parser(self, frames=2, retries=1):
        pytest.importorskip("httpx")
        llm = VisionModel(base_url=f"http://127.0.0.1:{self.server.server_port}/v1", model="eyes", api_key_env=None,
                          max_tokens=100, temperature=0.0, seed=None, format="json_schema", concurrency=1, timeout=5,
                          retries=0, max_wait=1, token_budget=None, price_prompt=None, price_answer=None)  # fmt: skip
        return VisionParser(llm=llm, frames=frames, size=20, retries=retries, tell_caption=True)


def test_a_vision_model_sees_pictures_and_answers_in_the_schema():
    eyes = Eyes("```json\n" + json.dumps({"pictures": [DOG, NOBODY]}) + "\n```")
    video = np.stack([picture((RED, (5, 5, 15, 15)), size=(40, 80))] * 4)
    graphs = eyes.parser().parse(video, "A dog chases a ball.", 8.0, {})
    assert [[seen.track for seen in graph.objects] for graph in graphs] == [["dog", "ball"]] * 2 + [[]] * 2
    assert graphs[0].objects[0].box == (8.0, 8.0, 24.0, 16.0)
    assert graphs[0].links == (Link("dog", "chasing", "ball", is_action=True),)
    body = eyes.seen[0]
    text, *pictures = body["messages"][0]["content"]
    assert "A dog chases a ball." in text["text"]
    assert len(pictures) == 2
    assert all(part["image_url"]["url"].startswith("data:image/png;base64,") for part in pictures)
    assert body["response_format"]["json_schema"]["schema"]["title"] == "PicturesReply"
    merged = Merging(ticks=2, min_score=0.3, min_frames=2, max_gap=0, min_link=1, share=0.5).merge(graphs)
    assert merged.plan.to_json() == [["dog", "chasing", "ball", [0, 1]]]


def test_an_answer_that_cannot_be_read_is_asked_for_again_with_the_problem_and_then_given_up():
    video = np.stack([picture()] * 4)
    eyes = Eyes("I am sorry.", json.dumps({"pictures": [DOG, DOG]}))
    assert eyes.parser().parse(video, "", 8.0, {}) is not None
    assert "could not be read" in eyes.seen[1]["messages"][0]["content"][0]["text"]
    assert Eyes("I am sorry.").parser(retries=1).parse(video, "", 8.0, {}) is None


def test_other_forms_of_answers_are_read_without_boxes():
    graphs = read_answer("0v: (dog, chasing, ball), (dog, brown)\n1v: (dog, biting, ball)", 2, (40, 40))
    assert [[link.predicate for link in graph.links] for graph in graphs] == [["chasing"], ["biting"]]
    assert graphs[0].objects[0].box is None
    with pytest.raises(PlanError):
        read_answer("no idea", 2, (40, 40))
    assert read_answer(json.dumps({"pictures": [DOG] * 5}), 2, (40, 40))[1].objects[0].label == "dog"
    flat = json.loads(json.dumps(DOG))
    flat["objects"][0]["box"] = [300, 200, 100, 200]
    assert read_answer(json.dumps({"pictures": [flat]}), 1, (40, 40))[0].objects[0].box is None


# ---- Action Genome


def genome(folder, **more):
    def entry(kind, box, **said):
        blank = {"attention_relationship": None, "spatial_relationship": None, "contacting_relationship": None}
        tag = {"tag": "ABC12.mp4/book/000001", "set": "train"}
        return {"class": kind, "bbox": box, **blank, "visible": box is not None, "metadata": tag} | said

    book = {"attention_relationship": ["looking_at"], "spatial_relationship": ["in_front_of"],
            "contacting_relationship": ["holding", "touching"]}  # fmt: skip
    objects = {"ABC12.mp4/000001.png": [entry("book", (20.0, 20.0, 40.0, 20.0), **book), entry("cup", None)],
               "ABC12.mp4/000011.png": [entry("book", (30.0, 20.0, 40.0, 20.0), contacting_relationship=["not_contacting"],
                                              attention_relationship=["unsure"])]}  # fmt: skip
    persons = {key: {"bbox": np.array([[100.0, 10.0, 160.0, 90.0]], dtype=np.float32), "bbox_score": np.array([0.9]),
                     "bbox_size": (200, 100), "bbox_mode": "xyxy"} for key in objects}  # fmt: skip
    for name, content in (("object_bbox_and_relationship.pkl", objects), ("person_bbox.pkl", persons)):
        (folder / name).write_bytes(pickle.dumps(content))
    return ActionGenome(folder=str(folder), **{"fps": 10.0, "unsure": False} | more)


def test_action_genome(tmp_path):
    parser = genome(tmp_path)
    graphs = parser.parse(None, "", 10.0, SIZES | {"key": "charades-ABC12", "source": {}})
    assert len(graphs) == 20
    assert {seen.label: seen.box for seen in graphs[0].objects} == {"person": (50, 5, 80, 45), "book": (10, 10, 30, 20)}
    assert graphs[0].links == (
        Link("person", "looking at", "book"),
        Link("book", "in front of", "person"),
        Link("person", "holding", "book", is_action=True),
        Link("person", "touching", "book", is_action=True),
    )
    assert graphs[5] == graphs[0]
    assert graphs[6] == graphs[19]  # the nearer one
    assert graphs[19].links == (Link("person", "not contacting", "book"),)
    assert Link("person", "unsure", "book") in genome(tmp_path, unsure=True).parse(
        None, "", 10.0, SIZES | {"key": "x", "source": {"video": "ABC12.mp4"}})[19].links  # fmt: skip


def test_action_genome_knows_where_a_clip_begins_and_what_it_does_not_know(tmp_path):
    parser = genome(tmp_path)
    late = parser.parse(None, "", 5.0, SIZES | {"key": "x", "source": {"video": "ABC12", "start": 1.0}})
    assert late[0].links == (Link("person", "not contacting", "book"),)  # picture 11 lies at second 1
    assert parser.parse(None, "", 5.0, SIZES | {"key": "x", "source": {"video": "ABC12", "start": 9.0}}) is None
    assert parser.parse(None, "", 5.0, SIZES | {"key": "charades-OTHER", "source": {}}) is None


def test_a_pickle_that_wants_more_than_numbers_is_refused(tmp_path):
    genome(tmp_path)

    class Bomb:
        def __reduce__(self):
            return print, ("boom",)

    (tmp_path / "person_bbox.pkl").write_bytes(pickle.dumps({"a": Bomb()}))
    with pytest.raises(DataError, match="it wants builtins.print"):
        ActionGenome(folder=str(tmp_path), fps=None, unsure=False)
    (tmp_path / "person_bbox.pkl").write_bytes(pickle.dumps(list(range(9)))[:-3])
    with pytest.raises(DataError, match="cannot be read"):
        ActionGenome(folder=str(tmp_path), fps=None, unsure=False)
    with pytest.raises(ConfigError, match="parser.folder"):
        ActionGenome(folder=str(tmp_path / "gone"), fps=None, unsure=False)


# ---- ActivityNet-Entities


def entities(folder):
    segment = {"process_clss": [["man"], ["dog"], ["man", "shirt"], ["dog"]], "tokens": ["a", "man", "walks", "dogs"],
               "frame_ind": [0, 0, 9, 0], "process_idx": [[1], [3], [1, 2], [3]], "crowds": [0, 0, 0, 0],
               "process_bnd_box": [[72, 72, 144, 288], [360, 72, 432, 144], [144, 72, 216, 288],
                                   [576, 72, 648, 144]]}  # fmt: skip
    empty = {name: [] for name in segment}
    content = {
        "vocab": ["man", "dog", "shirt"],
        "annotations": {"v_abc-DEF_123": {"segments": {"0": segment, "1": empty}}},
    }
    (folder / "entities.json").write_text(json.dumps(content))
    return ActivityNetEntities(file=str(folder / "entities.json"), width=720, relations=RELATIONS, samples=10)


def test_activitynet_entities(tmp_path):
    parser = entities(tmp_path)
    graphs = parser.parse(None, "", 8.0, SIZES | {"key": "v_abc-DEF_123-0", "source": {}})
    assert [seen.label for seen in graphs[0].objects] == ["man", "dog", "dog"]
    assert [seen.label for seen in graphs[19].objects] == ["man", "shirt"]
    assert graphs[0].objects[0].box == (10, 10, 20, 40)
    assert graphs[0].objects[0].track == graphs[19].objects[0].track, "the same word is the same thing"
    assert len({seen.track for seen in graphs[0].objects}) == 3
    assert [link.predicate for link in graphs[0].links if link.object == graphs[0].objects[1].track] == [
        "left of", "below"]  # fmt: skip
    assert not [link for graph in graphs for link in graph.links if link.is_action], "ten frames show no motion"
    named = parser.parse(None, "", 8.0, SIZES | {"key": "x", "source": {"video": "abc-DEF_123", "segment": 0}})
    assert named == graphs


def test_segments_without_boxes_are_unknown_and_other_files_are_refused(tmp_path):
    parser = entities(tmp_path)
    for key in ("v_abc-DEF_123-1", "v_abc-DEF_123-7", "v_other-0"):
        assert parser.parse(None, "", 8.0, SIZES | {"key": key, "source": {}}) is None
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ConfigError, match="parser.file"):
        ActivityNetEntities(file=str(tmp_path / "other.json"), width=720, relations=RELATIONS, samples=10)
