"""Uploads an exported folder to the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from cpulm.errors import ResourceError, SettingsError

_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


def require_hub(name: str) -> None:
    """Check that ``name`` can be uploaded to, as far as that needs no network.

    Raises:
        SettingsError: if the package is not installed, nobody is logged in, or it is not a name.
    """
    if _NAME.fullmatch(name) is None:
        raise SettingsError(f"--push {name} is not a name of the Hub", "such as --push me/my-model")
    try:
        from huggingface_hub import get_token
    except ImportError as error:
        raise SettingsError(
            "--push needs the package huggingface_hub, which is not installed", "pip install huggingface_hub"
        ) from error
    if get_token() is None:
        raise SettingsError("--push needs an account of the Hugging Face Hub", "log in with `hf auth login`")


def push(folder: Path, name: str) -> str:
    """Upload the files in ``folder`` to the repository ``name``, which is created as a private one.

    Returns:
        The address of the uploaded commit.

    Raises:
        ResourceError: if the upload fails; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="cpulm")
    try:
        repository = api.create_repo(name, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, commit_message="Exported by cpulm"
        )
    except Exception as error:  # of the network, the Hub, or its client: all are what the user sees to
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ResourceError(
            f"cannot upload to {name}: {reason}",
            f"the files are in {folder}: run the command again with --force",
        ) from error
    return str(commit)
