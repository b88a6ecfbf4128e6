"""Drop-in layers: those over vidgen's ops, and those that causal networks of shifted convolutions consist of."""

from vidgen.nn.conv_pool3d import ConvPool3d as ConvPool3d
from vidgen.nn.dropout import Dropout as Dropout
from vidgen.nn.gated_resnet import GatedResnet as GatedResnet
from vidgen.nn.gated_resnet import concat_elu as concat_elu
from vidgen.nn.masked_conv2d import MaskedConv2d as MaskedConv2d
from vidgen.nn.prepack import prepack as prepack
from vidgen.nn.shifted_conv2d import ShiftedConv2d as ShiftedConv2d
from vidgen.nn.shifted_conv2d import ShiftedConvTranspose2d as ShiftedConvTranspose2d
from vidgen.nn.shifted_conv2d import down_shift as down_shift
from vidgen.nn.shifted_conv2d import right_shift as right_shift
from vidgen.nn.weight_norm import WeightNorm as WeightNorm
from vidgen.nn.weight_norm import fold_weight_norm as fold_weight_norm
from vidgen.nn.weight_norm import initialize_from_data as initialize_from_data
from vidgen.nn.weight_norm import weight_norm as weight_norm
