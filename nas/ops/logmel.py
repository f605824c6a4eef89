"""`LogMel`: samples of sound to log-mel frames or MFCCs, with convolutions of fixed weights alone.

Inside a network it is exported with it: a device gets samples in, and no runtime needs an operator
for a Fourier transform. Its weights and MACs count as those of any convolution do.
"""

from math import pi

import torch
from torch import Tensor, nn

EPSILON = 1e-6  # added before the logarithm: 60 dB below a sine of amplitude 1


class Fixed(nn.Conv1d):
    """A convolution without bias, of weights that are not trained.

    Args:
        weight: ``(out, in, kernel)``.
        stride: of its positions.
    """

    def __init__(self, weight: Tensor, stride: int = 1) -> None:
        outputs, inputs, kernel = weight.shape
        super().__init__(inputs, outputs, kernel, stride, bias=False)
        self.weight = nn.Parameter(weight.float(), requires_grad=False)

    def reset_parameters(self) -> None:
        """Nothing: the weights are not random."""


class LogMel(nn.Module):
    """Log-mel energies of frames, or their cosine transform (MFCC), and a BatchNorm.

    ``y = norm(C log(M |F x|^2 + 1e-6))``: F is the Fourier transform of frames under a Hann window,
    M the triangles of equal width on the mel scale ``1127 ln(1 + f / 700)``, C the cosine transform
    or nothing. F has only the frequencies that M reads, at the steps of a transform of a power of
    two samples; frames are not padded.

    Args:
        rate: samples a second.
        window, hop: samples of a frame, and from one to the next.
        mels: bands.
        coefficients: of the cosine transform; None: the bands themselves.
        low, high: Hz, ends of the bands.
        image: whether frames and bands are the sides of an image of one channel.

    Shape: ``(N, 1, L) -> (N, 1, frames, features)`` of an image, else ``(N, features, frames)``,
    frames = ``(L - window) // hop + 1``.
    """

    def __init__(
        self,
        rate: int,
        window: int,
        hop: int,
        mels: int,
        coefficients: int | None = None,
        low: float = 20.0,
        high: float = 4000.0,
        image: bool = True,
    ) -> None:
        super().__init__()
        self.image = image
        frequencies, bands = mel_bands(rate, window, mels, low, high)
        self.frames = Fixed(fourier(window, frequencies / rate), hop)
        self.bands = Fixed(bands[..., None])
        self.cosine = None
        if coefficients is not None:
            self.cosine = Fixed(cosine(coefficients, mels)[..., None])
        self.norm = nn.BatchNorm1d(coefficients or mels)

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = self.frames(x).chunk(2, 1)
        y: Tensor = (self.bands(real * real + imaginary * imaginary) + EPSILON).log()
        if self.cosine is not None:
            y = self.cosine(y)
        y = self.norm(y)
        return y.transpose(1, 2).unsqueeze(1) if self.image else y

    def output_shape(self, samples: int) -> tuple[int, ...]:
        """``(C, *S)`` of what it makes of that many samples."""
        window, hop = self.frames.kernel_size[0], self.frames.stride[0]
        frames, features = (samples - window) // hop + 1, self.norm.num_features
        return (1, frames, features) if self.image else (features, frames)


def fourier(window: int, frequencies: Tensor) -> Tensor:
    """Real and then imaginary parts ``(2 * F, 1, window)``; a sine of amplitude 1 gives 1.

    Args:
        frequencies: in cycles a sample ``(F,)``.
    """
    hann = torch.hann_window(window, dtype=torch.float64)
    angles = 2 * pi * frequencies[:, None] * torch.arange(window, dtype=torch.float64)
    parts = torch.cat([angles.cos(), -angles.sin()])
    return (parts * hann * (2 / hann.sum()))[:, None]


def mel_bands(rate: int, window: int, mels: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Frequencies in Hz ``(F,)``, and what each adds to each band ``(mels, F)``."""
    first, last = _mel(torch.tensor([low, high], dtype=torch.float64)).tolist()
    edges = torch.linspace(first, last, mels + 2, dtype=torch.float64)
    size = 1 << (window - 1).bit_length()
    while True:  # until each band has a frequency
        frequencies = torch.arange(size // 2 + 1, dtype=torch.float64) * rate / size
        at = _mel(frequencies)
        rising = (at - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
        falling = (edges[2:, None] - at) / (edges[2:] - edges[1:-1])[:, None]
        bands = rising.minimum(falling).clamp(min=0)
        if bool((bands.sum(1) > 0).all()):
            break
        size *= 2
    used = bands.sum(0) > 0
    return frequencies[used], bands[:, used]


def cosine(coefficients: int, mels: int) -> Tensor:
    """The orthonormal DCT-II, its first rows ``(coefficients, mels)``."""
    k = torch.arange(coefficients, dtype=torch.float64)[:, None]
    angles = pi / mels * (torch.arange(mels, dtype=torch.float64) + 0.5) * k
    return angles.cos() * torch.where(k == 0, 1 / mels, 2 / mels).sqrt()


def _mel(hertz: Tensor) -> Tensor:
    return 1127 * (1 + hertz / 700).log()
