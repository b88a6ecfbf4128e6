"""Drop-in layers over vidgen's ops."""

from vidgen.nn.conv_pool3d import ConvPool3d as ConvPool3d
from vidgen.nn.masked_conv2d import MaskedConv2d as MaskedConv2d
from vidgen.nn.prepack import prepack as prepack
