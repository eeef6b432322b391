import subprocess

from pipelines.core.git import git_commit


def test_commit_is_none_without_a_repository(tmp_path):
    assert git_commit(tmp_path) == ("none", False)


def test_changed_code_makes_a_commit_dirty_and_pipeline_outputs_do_not(tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    (tmp_path / "dvc.lock").write_text("")
    commit, dirty = git_commit(tmp_path)
    assert len(commit) == 40
    assert not dirty
    (tmp_path / "code.py").write_text("")
    assert git_commit(tmp_path) == (commit, True)
