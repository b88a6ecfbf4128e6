"""Optical flow in files and pictures: Middlebury, KITTI, two-stream grey images, OpenCV's arrays, wheels and arrows."""

from vidgen.flow_io.formats import decode_bounded as decode_bounded
from vidgen.flow_io.formats import encode_bounded as encode_bounded
from vidgen.flow_io.formats import flow_from_numpy as flow_from_numpy
from vidgen.flow_io.formats import flow_to_numpy as flow_to_numpy
from vidgen.flow_io.formats import read_bounded as read_bounded
from vidgen.flow_io.formats import read_flo as read_flo
from vidgen.flow_io.formats import read_kitti as read_kitti
from vidgen.flow_io.formats import write_bounded as write_bounded
from vidgen.flow_io.formats import write_flo as write_flo
from vidgen.flow_io.formats import write_kitti as write_kitti
from vidgen.flow_io.pictures import draw_arrows as draw_arrows
from vidgen.flow_io.pictures import flow_to_rgb as flow_to_rgb
