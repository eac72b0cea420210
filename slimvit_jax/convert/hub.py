"""Published weights from the Hugging Face hub."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from pathlib import Path

from slimvit_jax.convert.formats import IN_A_FOLDER, shards
from slimvit_jax.errors import SlimError, first_line
from slimvit_jax.models import NAMED

PREFIX = "hf-hub:"
FILE = "model.safetensors"


class NoSuchFile(SlimError):
    """The repository is there, the file is not."""


def is_hub(path: str | Path) -> bool:
    """Whether `path` names a repository on the hub rather than a file."""
    return str(path).startswith(PREFIX)


def repository(path: str) -> str:
    """The repository that "hf-hub:owner/NAME" means; a named model without a tag means timm's default weights."""
    name = path.removeprefix(PREFIX)
    owner, _, model = name.partition("/")
    if not owner or not model:
        raise SlimError(f"{path!r}: expected {PREFIX}OWNER/NAME, such as {PREFIX}{NAMED['deit_small_patch16_224'].hub}")
    return (NAMED[model].hub or name) if owner == "timm" and model in NAMED else name


def fetch(path: str, file: str = FILE) -> Path:
    """The local path of a file of the repository, downloaded unless the hub's local cache has it.

    Raises:
      SlimError: without a network, for a repository or file that is not there, and when huggingface_hub is missing.
    """
    repo = repository(path)
    try:
        import huggingface_hub
        from huggingface_hub.constants import ENDPOINT
        from huggingface_hub.errors import RemoteEntryNotFoundError
    except ImportError as error:
        raise SlimError(f"{path}: downloading needs the package huggingface_hub ({error})") from None
    cached = _cached(repo, file)
    if cached is not None:
        return cached
    host = urllib.parse.urlsplit(ENDPOINT).hostname or ""
    if not urllib.request.getproxies():  # with a proxy, names are resolved elsewhere
        try:
            socket.getaddrinfo(host, 443)
        except OSError as error:  # the client would retry for half a minute
            raise SlimError(
                f"{path}: cannot reach {host} ({error.strerror or error}); download {file} of {repo} where there is a "
                "network, and give the path of that file"
            ) from None
    try:
        return Path(huggingface_hub.hf_hub_download(repo, file))
    except Exception as error:
        kind = NoSuchFile if isinstance(error, RemoteEntryNotFoundError) else SlimError
        raise kind(f"{path}: {file} of {repo} could not be downloaded: {first_line(error)}") from error


def fetch_weights(path: str) -> Path:
    """The local path of the repository's weights: a single file, or the index of several with all of them beside it.

    Raises:
      SlimError: as `fetch`; where none of the usual files is there, the error about the first of them.
    """
    repo, errors = repository(path), []
    for local in (_cached(repo, name) for name in IN_A_FOLDER):
        if local is not None:
            return _with_shards(path, local)
    for name in IN_A_FOLDER:
        try:
            return _with_shards(path, fetch(path, name))
        except NoSuchFile as error:
            errors.append(error)
    raise errors[0]


def _with_shards(path: str, local: Path) -> Path:
    if local.name.endswith(".index.json"):
        for name in shards(local):
            fetch(path, name)
    return local


def _cached(repo: str, file: str) -> Path | None:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(repo, file, local_files_only=True))
    except Exception:  # not in the cache, in one of the client's many words
        return None
