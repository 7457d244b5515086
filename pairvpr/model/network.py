"""The Pair-VPR network: an encoder, a global descriptor for search, and a pair decoder for re-ranking."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pairvpr.errors import CheckpointError, one_line
from pairvpr.model.checkpoint_files import CheckpointContent, read_checkpoint
from pairvpr.model.convolutional import ConvolutionalEncoder, is_convolutional
from pairvpr.model.decoder import PairDecoder
from pairvpr.model.encoder import Encoder
from pairvpr.model.presets import NetworkConfig


class PairVPR(nn.Module):
    """Pair-VPR (Hausler & Moghadam, RA-L 2025)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ConvolutionalEncoder(config) if is_convolutional(config.encoder) else Encoder(config)
        self.descriptor = nn.Linear(self.encoder.summary_width, config.descriptor_dim)
        self.decoder = PairDecoder(config, self.encoder.width, self.encoder.patch_size)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> PairVPR:
        """Load the network of a checkpoint file, in evaluation mode. Its architecture follows from the tensors' shapes.

        `path` is a published `.pth` file of either stage, one of ours (`.safetensors` beside a `.json`), or
        `hf:OWNER/REPO/FILE`, which is fetched and cached. Raises CheckpointError.
        """
        return cls.from_content(read_checkpoint(path))

    @classmethod
    def from_content(cls, content: CheckpointContent) -> PairVPR:
        """Build the network of a checkpoint that was read, in evaluation mode. Raises CheckpointError."""
        try:
            with torch.device("meta"):
                network = cls(content.config)
        except (CheckpointError, MemoryError):
            raise
        except Exception as error:  # torch and timm raise nearly any type for sizes that do not go together
            raise CheckpointError(
                f"{content.file}: its description is of no possible network ({one_line(error)}); copy the checkpoint "
                "again"
            ) from error
        content.fill(network)
        return network.eval()

    def normalise(self, images: Tensor) -> Tensor:
        """Pictures uint8 (B, H, W, 3) -> float32 (B, 3, H, W) of the configuration's mean and deviation."""
        mean = torch.tensor(self.config.mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.config.std, device=images.device).view(3, 1, 1)
        return (images.float().permute(0, 3, 1, 2) / 255.0 - mean) / std

    def describe(self, summaries: Tensor) -> Tensor:
        """Turn class tokens or aggregates (B, S) into L2-normalised global descriptors (B, G), float32."""
        return F.normalize(self.descriptor(summaries).float(), dim=-1)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Turn pictures uint8 (B, H, W, 3) into descriptors (B, G) and decoder-ready tokens (B, T, D)."""
        summaries, dense = self.encoder(self.normalise(images))
        return self.describe(summaries), self.decoder.tokens(dense)

    def pair_logits(self, first: Tensor, second: Tensor) -> Tensor:
        """Return pair logits (B,) in one order.

        first, second: decoder-ready tokens (B, T, D). The second picture's are the memory.
        """
        x = self.decoder.decode(self.decoder.with_class_token(first), second)
        logits = self.decoder.logits(x[:, 0])
        return logits if self.decoder.late is None else logits + self.decoder.late(first, second)

    def score(self, query: Tensor, database: Tensor) -> Tensor:
        """Return pair scores (B,), the sum of the logits of both orders.

        query: tokens (1 or B, T, D).
        database: tokens (B, T, D).
        """
        query = query.expand(len(database), -1, -1)
        return self.pair_logits(query, database) + self.pair_logits(database, query)

    def reconstruct(self, masked: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
        """Reconstruct pictures in stage one. Return normalised pixels (B, T, P) of each patch.

        masked: pictures uint8 (B, H, W, 3).
        mask: (B, T), true where `masked` is hidden.
        reference: pictures uint8 (B, H, W, 3) of the same places.
        """
        _, hidden = self.encoder(self.normalise(masked), mask)
        _, seen = self.encoder(self.normalise(reference))
        x = self.decoder.decode(self.decoder.tokens(hidden), self.decoder.tokens(seen))
        return self.decoder.reconstruction(x)
