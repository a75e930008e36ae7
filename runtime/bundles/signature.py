"""The signature of a bundle in the OpenSSF model signing format; the one part beyond Python's own.

It covers every file but itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BackendError, InputError
from .format import SIGNATURE_FILE, BundleError


def _library() -> Any:
    try:
        import model_signing
    except ImportError:
        raise BackendError(
            "signatures need model-signing, pyOpenSSL and Python 3.9 or later; run: "
            "pip install model-signing pyopenssl (checksums and statements need neither)"
        ) from None
    return model_signing


def _hashing(library: Any) -> Any:
    return library.hashing.Config().set_ignored_paths(
        paths=[SIGNATURE_FILE], ignore_git_paths=False
    )


def sign(folder: Path, key: Path) -> None:
    """Signs every file of a bundle with a private key on an elliptic curve.

    Raises:
        InputError: no such key, or none that can sign.
        BackendError: the library is missing.
    """
    library = _library()
    if not key.is_file():
        raise InputError(f"{key}: no such key")
    try:
        signer = library.signing.Config().use_elliptic_key_signer(private_key=key)
    except (ValueError, TypeError, OSError, library_errors()) as error:
        raise InputError(
            f"{key}: cannot sign ({error}); it must be a private key without a password: "
            "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
        ) from None
    signer.set_hashing_config(_hashing(library)).sign(folder, folder / SIGNATURE_FILE)


def library_errors() -> Any:
    """What the library raises for keys of another kind."""
    from cryptography.exceptions import UnsupportedAlgorithm

    return UnsupportedAlgorithm


def check_signature(folder: Path, key: Path) -> None:
    """Checks a bundle's signature with a public key.

    Raises:
        InputError: no such key.
        BackendError: the library is missing.
        BundleError: not signed, signed by another key, or changed since.
    """
    if not key.is_file():
        raise InputError(f"{key}: no such key")
    if not (folder / SIGNATURE_FILE).is_file():
        raise BundleError(f"{SIGNATURE_FILE}: missing; the bundle is not signed")
    library = _library()
    try:
        verifier = library.verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (ValueError, TypeError, OSError, library_errors()) as error:
        raise InputError(f"{key}: not a public key ({error})") from None
    try:
        # How it was hashed is ours to say, not the signature's.
        verifier.set_hashing_config(_hashing(library)).verify(folder, folder / SIGNATURE_FILE)
    except Exception as error:  # whatever a damaged signature makes the library stumble over
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BundleError(f"{SIGNATURE_FILE}: not a signature of this bundle ({reason})") from None
