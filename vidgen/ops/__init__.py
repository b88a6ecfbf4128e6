"""The ops. Each module states its op's contract; every function here is that of the module of its name."""

from vidgen.ops.conv3d_pool3d import conv3d_pool3d as conv3d_pool3d
from vidgen.ops.conv3d_pool3d import conv3d_pool3d_pack as conv3d_pool3d_pack
from vidgen.ops.corr_lookup import corr_feature_pyramid as corr_feature_pyramid
from vidgen.ops.corr_lookup import corr_lookup as corr_lookup
from vidgen.ops.corr_lookup import corr_pyramid as corr_pyramid
from vidgen.ops.discretized_logistic_mixture import discretized_logistic_mixture as discretized_logistic_mixture
from vidgen.ops.flow_consistency import flow_consistency as flow_consistency
from vidgen.ops.masked_conv2d import masked_conv2d as masked_conv2d
from vidgen.ops.masked_conv2d import masked_conv2d_pack as masked_conv2d_pack
from vidgen.ops.optical_flow import optical_flow as optical_flow
from vidgen.ops.optical_flow import optical_flow_bidirectional as optical_flow_bidirectional
from vidgen.ops.optical_flow_dis import optical_flow_dis as optical_flow_dis
from vidgen.ops.optical_flow_tvl1 import optical_flow_tvl1 as optical_flow_tvl1
from vidgen.ops.warp import warp as warp
