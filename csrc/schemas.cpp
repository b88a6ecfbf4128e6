// Every op's signature: the engine's table of contents.
//
// An op has one schema, and its backend is chosen inside it at run time, so that torch.ops.vidgen.*, compiled
// and exported graphs behave like the public function. `impl` forces a backend by name (None: the first that
// supports the call). The *_reference twins are where C++ hands a call over to eager PyTorch; `why` is the
// reason to warn with, empty when the reference was asked for.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(vidgen, m) {
  // Causal convolution of PixelCNN and its two adjoints. The three are closed under differentiation.
  m.def(
      "masked_conv2d(Tensor x, Tensor weight, Tensor? bias, str mask, int colors, str color_layout, int dilation, "
      "str algorithm, str? impl, Tensor? packed) -> Tensor");
  m.def(
      "masked_conv2d_grad_input(Tensor grad_output, Tensor weight, str mask, int colors, str color_layout, "
      "int dilation, str algorithm, str? impl) -> Tensor");
  m.def(
      "masked_conv2d_grad_weight(Tensor grad_output, Tensor x, int[] kernel_size, str mask, int colors, "
      "str color_layout, int dilation, str algorithm, str? impl) -> Tensor");
  m.def(
      "masked_conv2d_reference(Tensor x, Tensor weight, Tensor? bias, str mask, int colors, str color_layout, "
      "int dilation, str why) -> Tensor");
  m.def(
      "masked_conv2d_grad_input_reference(Tensor grad_output, Tensor weight, str mask, int colors, "
      "str color_layout, int dilation, str why) -> Tensor");
  m.def(
      "masked_conv2d_grad_weight_reference(Tensor grad_output, Tensor x, int[] kernel_size, str mask, int colors, "
      "str color_layout, int dilation, str why) -> Tensor");
  // The weight in the byte layout that this machine's CPU kernel reads, for every form it may choose.
  m.def(
      "masked_conv2d_pack(Tensor weight, str mask, int colors, str color_layout, int dilation, str algorithm) "
      "-> Tensor");
  m.def(
      "masked_conv2d_packed_bytes(int[] weight_size, ScalarType dtype, str mask, int colors, str color_layout, "
      "int dilation, str algorithm) -> int");
  // Why the CPU kernel cannot serve a dtype ("" if it can); the plan that it would run, in words; and the FLOPs of that
  // plan's products for one image (a multiply-add counts as two).
  m.def("masked_conv2d_cpu_supports(ScalarType dtype) -> str");
  m.def(
      "masked_conv2d_cpu_plan(Tensor x, Tensor weight, str mask, int colors, str color_layout, int dilation, "
      "str algorithm) -> (str, float)");

  // Convolution, bias, activation and max-pooling; the gradient of what the activation reads, and from that those of
  // the input, and of weight and bias. `padding` is six numbers: before and after, for depth, height and width.
  m.def(
      "conv3d_pool3d(Tensor x, Tensor weight, Tensor? bias, int[] padding, str activation, int[] pool, "
      "bool ceil_mode, str algorithm, str? impl, Tensor? packed) -> Tensor");
  m.def(
      "conv3d_pool3d_grad_preactivation(Tensor grad_output, Tensor x, Tensor weight, Tensor? bias, int[] padding, "
      "str activation, int[] pool, bool ceil_mode, str algorithm, str? impl) -> Tensor");
  m.def("conv3d_pool3d_grad_input(Tensor grad, Tensor weight, int[] padding, str algorithm, str? impl) -> Tensor");
  m.def(
      "conv3d_pool3d_grad_weight(Tensor grad, Tensor x, int[] kernel_size, int[] padding, str algorithm, str? impl) "
      "-> (Tensor, Tensor)");
  m.def(
      "conv3d_pool3d_reference(Tensor x, Tensor weight, Tensor? bias, int[] padding, str activation, int[] pool, "
      "bool ceil_mode, str why) -> Tensor");
  m.def(
      "conv3d_pool3d_grad_preactivation_reference(Tensor grad_output, Tensor x, Tensor weight, Tensor? bias, "
      "int[] padding, str activation, int[] pool, bool ceil_mode, str why) -> Tensor");
  m.def("conv3d_pool3d_grad_input_reference(Tensor grad, Tensor weight, int[] padding, str why) -> Tensor");
  m.def(
      "conv3d_pool3d_grad_weight_reference(Tensor grad, Tensor x, int[] kernel_size, int[] padding, str why) "
      "-> (Tensor, Tensor)");
  // The weight in the layout of one form of this machine's CPU kernel, chosen for clips of input_size (empty: unknown).
  m.def("conv3d_pool3d_pack(Tensor weight, int[] input_size, int[] padding, int[] pool, str algorithm) -> Tensor");
  m.def(
      "conv3d_pool3d_packed_bytes(int[] weight_size, ScalarType dtype, int[] input_size, int[] padding, int[] pool, "
      "str algorithm) -> int");
  // As for masked_conv2d; the FLOPs are those of one clip.
  m.def("conv3d_pool3d_cpu_supports(ScalarType dtype) -> str");
  m.def(
      "conv3d_pool3d_cpu_plan(Tensor x, Tensor weight, int[] padding, int[] pool, bool ceil_mode, str algorithm) "
      "-> (str, float)");

  // Log-likelihood of images under a mixture of discretised logistics, and its gradient in the parameters.
  m.def("discretized_logistic_mixture(Tensor params, Tensor x, int levels, str mode, str? impl) -> Tensor");
  m.def(
      "discretized_logistic_mixture_grad_params(Tensor grad_output, Tensor params, Tensor x, int levels, str mode, "
      "str? impl) -> Tensor");
  m.def("discretized_logistic_mixture_reference(Tensor params, Tensor x, int levels, str mode, str why) -> Tensor");
  m.def(
      "discretized_logistic_mixture_grad_params_reference(Tensor grad_output, Tensor params, Tensor x, int levels, "
      "str mode, str why) -> Tensor");
  m.def("discretized_logistic_mixture_cpu_supports(ScalarType dtype) -> str");

  // Backward warping by a flow in pixels, and its gradients. The gradient in x is linear and needs no x.
  m.def("warp(Tensor x, Tensor flow, str padding, str? impl) -> Tensor");
  m.def("warp_grad_x(Tensor grad_output, Tensor flow, str padding, str? impl) -> Tensor");
  m.def("warp_grad_flow(Tensor grad_output, Tensor x, Tensor flow, str padding, str? impl) -> Tensor");
  m.def("warp_reference(Tensor x, Tensor flow, str padding, str why) -> Tensor");
  m.def("warp_grad_x_reference(Tensor grad_output, Tensor flow, str padding, str why) -> Tensor");
  m.def("warp_grad_flow_reference(Tensor grad_output, Tensor x, Tensor flow, str padding, str why) -> Tensor");
  m.def("warp_cpu_supports(ScalarType dtype) -> str");

  // RAFT's correlation lookup and its gradients. With fmap1 the pyramid holds features, without it their correlations.
  m.def("corr_lookup(Tensor[] pyramid, Tensor coords, int radius, Tensor? fmap1, str? impl) -> Tensor");
  m.def(
      "corr_lookup_grad_pyramid(Tensor grad_output, Tensor[] pyramid, Tensor coords, int radius, Tensor? fmap1, "
      "str? impl) -> Tensor[]");
  m.def(
      "corr_lookup_grad_coords(Tensor grad_output, Tensor[] pyramid, Tensor coords, int radius, Tensor? fmap1, "
      "str? impl) -> Tensor");
  m.def(
      "corr_lookup_grad_fmap1(Tensor grad_output, Tensor[] pyramid, Tensor coords, int radius, Tensor? fmap1, "
      "str? impl) -> Tensor");
  m.def("corr_lookup_reference(Tensor[] pyramid, Tensor coords, int radius, Tensor? fmap1, str why) -> Tensor");
  m.def(
      "corr_lookup_grad_pyramid_reference(Tensor grad_output, Tensor[] pyramid, Tensor coords, int radius, "
      "Tensor? fmap1, str why) -> Tensor[]");
  m.def(
      "corr_lookup_grad_coords_reference(Tensor grad_output, Tensor[] pyramid, Tensor coords, int radius, "
      "Tensor? fmap1, str why) -> Tensor");
  m.def(
      "corr_lookup_grad_fmap1_reference(Tensor grad_output, Tensor[] pyramid, Tensor coords, int radius, "
      "Tensor? fmap1, str why) -> Tensor");
  m.def("corr_lookup_cpu_supports(ScalarType dtype) -> str");

  // Optical flow by dense inverse search from prev to next, both (N, 1 or 3, H, W), from the flow `init` or zero.
  m.def(
      "optical_flow_dis(Tensor prev, Tensor next, Tensor? init, int finest_scale, int patch_size, int patch_stride, "
      "int descent_iterations, int refinement_iterations, float alpha, float delta, float gamma, str? impl) -> Tensor");
  m.def(
      "optical_flow_dis_reference(Tensor prev, Tensor next, Tensor? init, int finest_scale, int patch_size, "
      "int patch_stride, int descent_iterations, int refinement_iterations, float alpha, float delta, float gamma, "
      "str why) -> Tensor");
  m.def("optical_flow_dis_cpu_supports(ScalarType dtype) -> str");

  // TV-L1 optical flow from prev to next, both (N, 1 or 3, H, W), from the flow `init` or zero.
  m.def(
      "optical_flow_tvl1(Tensor prev, Tensor next, Tensor? init, float tau, float lambda_, float theta, int levels, "
      "float scale_factor, int warps, int outer_iterations, int inner_iterations, int median, float epsilon, "
      "str? impl) -> Tensor");
  m.def(
      "optical_flow_tvl1_reference(Tensor prev, Tensor next, Tensor? init, float tau, float lambda_, float theta, "
      "int levels, float scale_factor, int warps, int outer_iterations, int inner_iterations, int median, "
      "float epsilon, str why) -> Tensor");
  m.def("optical_flow_tvl1_cpu_supports(ScalarType dtype) -> str");

  // What the executor "cpu" of vidgen.sampling runs: the numbers of a sampling program in this machine's layout, and
  // rows or times `first` ... `last` - 1 of a program; rows above `top` are finished, and a wavefront leaves them
  // alone. mixtures = 0: the head is a softmax over the levels.
  m.def("sample_causal_pack(Tensor program, Tensor numbers, bool narrow_weights) -> Tensor");
  m.def(
      "sample_causal(Tensor program, Tensor packed, bool narrow_weights, Tensor(a!) state, Tensor(b!) canvas, "
      "Tensor known, Tensor noise, Tensor(c!)? parameters, int first, int last, bool whole_rows, int top, int levels, "
      "int mixtures, float temperature, bool quantize) -> ()");
}
