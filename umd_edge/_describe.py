"""What a bundle says about itself, as one JSON object: for `umd-edge info` and the service."""

from __future__ import annotations

from typing import Any

from ._bundle import Bundle

__all__ = ["describe_bundle", "describe_signature", "model_card"]

_CARD = "MODEL_CARD.md"


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Hash, size, signature, the manifest without its list of files, and the model card."""
    manifest = bundle.manifest.to_dict()
    manifest.pop("files")
    return {
        "sha256": bundle.sha256,
        "size_bytes": bundle.size_bytes,
        "signature": describe_signature(bundle),
        **manifest,
        "model_card": model_card(bundle),
    }


def describe_signature(bundle: Bundle) -> dict[str, Any]:
    """Whether there is one, and the key that it was checked with."""
    key = bundle.signed_by
    return {
        "present": bundle.is_signed,
        "checked": key is not None,
        "key": key.fingerprint if key else None,
    }


def model_card(bundle: Bundle) -> str | None:
    """The text of the model card; None where there is none."""
    return bundle.read(_CARD).decode("utf-8") if _CARD in bundle.manifest.files else None
