"""Layouts of submissions: every student becomes one row, whatever lies around them."""

import os
import stat
import unicodedata
import zipfile

import pytest

from course_utils.errors import CourseError
from course_utils.grading.collect import MAX_BYTES, collect, slug
from course_utils.grading.notebook import NotebookError

NOTEBOOK = b'{"cells": [], "nbformat": 4}'


def put(root, *names, data=NOTEBOOK):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def rows(root, **options):
    found, _ = collect(root, **options)
    return [(one.student, one.set, one.fault) for one in found]


def test_the_three_layouts_beside_each_other(tmp_path):
    put(tmp_path, "anna/04_ppo/04_ppo.ipynb", "bert/04_ppo.ipynb", "carl_04_ppo.ipynb")
    put(tmp_path, "dora/07/my work.ipynb", "anna/.ipynb_checkpoints/04_ppo.ipynb")
    found, ignored = collect(tmp_path)
    assert [(s.student, s.set) for s in found] == [
        ("anna", "04"), ("bert", "04"), ("carl_04_ppo", "04"), ("dora", "07")
    ]  # fmt: skip
    assert ignored == []
    assert all(s.read() == NOTEBOOK for s in found)


def test_a_set_can_be_chosen_and_must_be_given_where_nothing_tells(tmp_path):
    put(tmp_path, "anna.ipynb", "bert.ipynb")
    with pytest.raises(CourseError, match=r"anna\.ipynb.*--set 04"):
        collect(tmp_path)
    assert rows(tmp_path, set="05") == [("anna", "05", ""), ("bert", "05", "")]
    put(tmp_path, "carl/03_rm.ipynb", "carl/05_dpo.ipynb")
    assert rows(tmp_path, set="03") == [("anna", "03", ""), ("bert", "03", ""), ("carl", "03", "")]
    with pytest.raises(CourseError, match="no exercise set '99'"):
        collect(tmp_path, set="99")


def test_the_students_part_of_a_name(tmp_path):
    put(tmp_path, "doe_jane_123_04_ppo.ipynb", "???_04_ppo.ipynb")
    found, _ = collect(tmp_path, student="^([a-z]+_[a-z]+)_")
    assert [(s.student, bool(s.fault), s.ours) for s in found] == [
        ("???_04_ppo", True, True), ("doe_jane", False, False)
    ]  # fmt: skip
    with pytest.raises(CourseError, match="not a regular expression"):
        collect(tmp_path, student="(")


def test_two_notebooks_of_one_student_are_a_persons_to_settle(tmp_path):
    put(tmp_path, "anna/04_ppo.ipynb", "anna/04_ppo (1).ipynb", "bert/04_ppo.ipynb")
    found, _ = collect(tmp_path)
    assert [bool(s.fault) for s in found] == [True, False]
    assert found[0].ours
    assert "keep one: anna/04_ppo (1).ipynb, anna/04_ppo.ipynb" in found[0].fault
    composed, decomposed = (unicodedata.normalize(form, "rené") for form in ("NFC", "NFD"))
    put(tmp_path, f"{composed}/04_ppo.ipynb", f"{decomposed}/04_ppo.ipynb")
    again, _ = collect(tmp_path)
    assert [s.student for s in again if s.fault] == ["anna", composed]


def test_a_folder_without_notebook_and_stray_files(tmp_path):
    put(tmp_path, "anna/04_ppo.ipynb", "bert/report.pdf", "readme.txt", "anna/notes.md")
    found, ignored = collect(tmp_path)
    assert [(s.student, s.set) for s in found] == [("anna", "04"), ("bert", "04")]
    assert "there is report.pdf" in found[1].fault
    assert ignored == ["anna/notes.md", "bert/report.pdf", "readme.txt"]


def test_nothing_there(tmp_path):
    with pytest.raises(CourseError, match="holds no notebooks"):
        collect(tmp_path)
    with pytest.raises(CourseError, match="neither a folder nor"):
        collect(tmp_path / "nowhere")
    put(tmp_path, "anna/04_ppo.ipynb")
    with pytest.raises(CourseError, match="no notebooks of set 05"):
        collect(tmp_path, set="05")


def test_links_are_rows_and_never_followed(tmp_path):
    secret = tmp_path / "secret"
    put(secret, "04_ppo.ipynb")
    root = tmp_path / "subs"
    put(root, "anna/04_ppo.ipynb")
    (root / "bert").mkdir()
    (root / "bert" / "04_ppo.ipynb").symlink_to(secret / "04_ppo.ipynb")
    (root / "carl").symlink_to(secret)
    (root / "dora_04_ppo.ipynb").symlink_to("/etc/passwd")
    (root / "anna" / "notes.txt").symlink_to("/etc/passwd")
    found, _ = collect(root)
    assert [(s.student, bool(s.fault)) for s in found] == [
        ("anna", False), ("bert", True), ("carl", True), ("dora_04_ppo", True)
    ]  # fmt: skip
    for one in found[1:]:
        with pytest.raises(NotebookError, match="link"):
            one.read()


def test_pipes_and_folders_called_like_notebooks(tmp_path):
    put(tmp_path, "anna/04_ppo.ipynb")
    os.mkfifo(tmp_path / "bert_04_ppo.ipynb")
    put(tmp_path / "carl" / "04_ppo.ipynb", "x.txt")
    found, _ = collect(tmp_path)
    assert [s.student for s in found] == ["anna", "bert_04_ppo", "carl"]
    with pytest.raises(NotebookError, match="not a regular file"):
        found[1].read()


@pytest.mark.parametrize(
    "name",
    ["anna", "bob smith", "..", ".", "", "a/b", "..\\x", "=cmd()", "名前", "x" * 500, "-rf", "é",
     "a\nb", "\udcff", "CON", "con.", "a\u202egpj"],
)  # fmt: skip
def test_a_students_name_is_a_plain_file_name(name, tmp_path):
    made = slug(name)
    assert 0 < len(made) < 80
    assert made not in (".", "..")
    assert "/" not in made
    assert "\\" not in made
    assert not made.startswith(".")
    (tmp_path / f"{made}.json").write_text("x")
    assert slug(name) == made
    assert slug(name + "!") != made


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def test_a_zip_of_a_learning_platform(tmp_path):
    names = ["class/anna/04_ppo/04_ppo.ipynb", "class/bert/04_ppo/04_ppo.ipynb"]
    found, _ = collect(zipped(tmp_path / "a.zip", [(n, NOTEBOOK) for n in names]))
    assert [(s.student, s.set, s.read()) for s in found] == [
        ("anna", "04", NOTEBOOK), ("bert", "04", NOTEBOOK)
    ]  # fmt: skip
    flat = [("class/anna_04_ppo.ipynb", NOTEBOOK), ("class/bert_04_ppo.ipynb", NOTEBOOK)]
    found, _ = collect(zipped(tmp_path / "b.zip", flat))
    assert [s.student for s in found] == ["anna_04_ppo", "bert_04_ppo"]
    mac = [("anna/04_ppo.ipynb", NOTEBOOK), ("__MACOSX/anna/._04_ppo.ipynb", b"")]
    found, _ = collect(zipped(tmp_path / "c.zip", mac))
    assert [s.student for s in found] == ["anna"]


def test_hostile_zips(tmp_path):
    link = zipfile.ZipInfo("dora/04_ppo.ipynb")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = zipped(
        tmp_path / "x.zip",
        [
            ("anna/04_ppo.ipynb", NOTEBOOK),
            ("../../bert_04_ppo.ipynb", NOTEBOOK),
            ("/etc/carl_04_ppo.ipynb", NOTEBOOK),
            (link, b"/etc/passwd"),
            ("emil/04_ppo.ipynb", b" " * (MAX_BYTES + 1)),
            ("C:\\x\\finn_04_ppo.ipynb", NOTEBOOK),
        ],
    )
    found, _ = collect(path)
    faults = {s.student: s.fault for s in found}
    assert faults.pop("anna") == ""
    assert faults.pop("emil") == ""
    assert set(faults) == {"bert_04_ppo", "carl_04_ppo", "dora", "finn_04_ppo"}
    assert all("link" in f or "leads out" in f for f in faults.values())
    (bomb,) = [s for s in found if s.student == "emil"]
    with pytest.raises(NotebookError, match="larger than"):
        bomb.read()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.zip"]


def test_broken_zips(tmp_path):
    broken = tmp_path / "b.zip"
    broken.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(CourseError, match="not a zip file"):
        collect(broken)
    good = zipped(tmp_path / "g.zip", [("anna/04_ppo.ipynb", os.urandom(5000))])
    data = bytearray(good.read_bytes())
    data[200:260] = bytes(60)
    good.write_bytes(bytes(data))
    (one,), _ = collect(good)
    with pytest.raises(NotebookError, match="cannot be read"):
        one.read()
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = zipped(tmp_path / "t.zip", [("anna/04_ppo.ipynb", NOTEBOOK)] * 2)
    (one,), _ = collect(twice)
    assert "2 notebooks" in one.fault
