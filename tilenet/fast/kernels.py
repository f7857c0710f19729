"""The layers of a U-Net as Triton kernels, which `tilenet/fast/frames.py` launches on its frames.

Each program computes blocks of the output matrix, whose rows are pixels and whose columns are channels: products of
rows of the input matrix with weights (outputs, taps * inputs), summed in float32. A product of float32 numbers is
computed as three products of TF32 numbers, which together are exact to about 2^-21.
"""

import triton
import triton.language as tl


@triton.jit
def activated(total, bias, scale, shift, channel, scaled: tl.constexpr):
    """Add the bias to sums, then apply the ReLU and perhaps a scale and a shift; NaN stays NaN."""
    total += tl.load(bias + channel)[None, :]
    total = tl.where(total < 0, 0.0, total)
    if scaled:
        total = total * tl.load(scale + channel)[None, :] + tl.load(shift + channel)[None, :]
    return total


@triton.jit
def convolve(
    x, weights, out, bias, scale, shift, width, first_row, blocks, columns, parts,
    scaled: tl.constexpr, precision: tl.constexpr, flatten: tl.constexpr,
    block_rows: tl.constexpr, block_outputs: tl.constexpr, block_inputs: tl.constexpr,
):  # fmt: skip
    """Write blocks of a 3x3 convolution, its ReLU, and perhaps a scale and a shift."""
    for block in tl.range(tl.program_id(0), blocks, tl.num_programs(0), flatten=flatten):
        row = block // columns * block_rows
        first = block % columns * block_outputs
        total = tl.zeros((block_rows, block_outputs), tl.float32)
        for k in range(9 * parts):
            tap = k // parts
            a = x.load([first_row + row + tap // 3 * width + tap % 3, k % parts * block_inputs])
            b = weights.load([first, k * block_inputs])
            total = tl.dot(a, b.T, total, input_precision=precision)
        channel = first + tl.arange(0, block_outputs)
        out.store([row, first], activated(total, bias, scale, shift, channel, scaled).to(out.dtype))


@triton.jit
def convolve_image(
    x, weights, out, bias, scale, shift, image_stride, channel_stride, y_stride, x_stride,
    height, width, h, w, used, channels, parts,
    scaled: tl.constexpr, precision: tl.constexpr,
    block_rows: tl.constexpr, block_outputs: tl.constexpr, block_inputs: tl.constexpr,
):  # fmt: skip
    """Write a block of the same for images of few channels, in few products: each covers several taps and channels."""
    row, first = tl.program_id(0) * block_rows, tl.program_id(1) * block_outputs
    p = row + tl.arange(0, block_rows)
    place = p % (height * width)
    y, column = place // width, place % width
    inside = (p < used) & (y < h) & (column < w)
    corner = x + (p // (height * width)).to(tl.int64) * image_stride + y * y_stride + column * x_stride
    total = tl.zeros((block_rows, block_outputs), tl.float32)
    for part in range(parts):
        k = part * block_inputs + tl.arange(0, block_inputs)
        tap = k // channels
        offset = tap // 3 * y_stride + tap % 3 * x_stride + k % channels * channel_stride
        a = tl.load(corner[:, None] + offset[None, :], mask=inside[:, None] & (tap < 9)[None, :], other=0.0)
        b = weights.load([first, part * block_inputs])
        total = tl.dot(a, b.T, total, input_precision=precision)
    channel = first + tl.arange(0, block_outputs)
    out.store([row, first], activated(total, bias, scale, shift, channel, scaled).to(out.dtype))


@triton.jit
def upsample(
    x, weights, out, bias, width, used, first_row, stride, columns, parts,
    outputs: tl.constexpr, precision: tl.constexpr,
    block_rows: tl.constexpr, block_outputs: tl.constexpr, block_inputs: tl.constexpr,
):  # fmt: skip
    """Write a block of a 2x2 transposed convolution of stride 2; the product's columns are outputs tap by tap."""
    row = tl.program_id(0) // columns * block_rows
    first = tl.program_id(0) % columns * block_outputs
    total = tl.zeros((block_rows, block_outputs), tl.float32)
    for k in range(parts):
        a = x.load([row, k * block_inputs])
        b = weights.load([first, k * block_inputs])
        total = tl.dot(a, b.T, total, input_precision=precision)
    column = first + tl.arange(0, block_outputs)
    total += tl.load(bias + column % outputs)[None, :]
    p = row + tl.arange(0, block_rows)
    corner = first_row + (4 * width * (p // width) + 2 * (p % width)).to(tl.int64)
    tap = column // outputs
    offset = corner[:, None] + (2 * width * (tap // 2) + tap % 2)[None, :]
    tl.store(
        out + offset * stride + (column % outputs)[None, :], total.to(out.dtype.element_ty), mask=(p < used)[:, None]
    )


@triton.jit
def pool(
    x, out, width, used, stride, mean: tl.constexpr, channels: tl.constexpr, block_rows: tl.constexpr
):  # fmt: skip
    """Write the maximum, or the mean, of each 2x2 pixels."""
    p = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    c = tl.arange(0, channels)
    inside = (p < used)[:, None]
    corner = x + ((p // width).to(tl.int64) * 4 * width + 2 * (p % width))[:, None] * stride + c[None, :]
    q00 = tl.load(corner, mask=inside).to(tl.float32)
    q01 = tl.load(corner + stride, mask=inside).to(tl.float32)
    q10 = tl.load(corner + 2 * width * stride, mask=inside).to(tl.float32)
    q11 = tl.load(corner + (2 * width + 1) * stride, mask=inside).to(tl.float32)
    if mean:
        made = (q00 + q01 + (q10 + q11)) * 0.25
    else:
        nan: tl.constexpr = tl.PropagateNan.ALL
        made = tl.maximum(tl.maximum(q00, q01, nan), tl.maximum(q10, q11, nan), nan)
    tl.store(out + p.to(tl.int64)[:, None] * channels + c[None, :], made.to(out.dtype.element_ty), mask=inside)


@triton.jit
def classify(
    x, weights, out, bias, images, height, width, h, w, classes, parts,
    precision: tl.constexpr, block_rows: tl.constexpr, block_outputs: tl.constexpr, block_inputs: tl.constexpr,
):  # fmt: skip
    """Write a block of the logits of a 1x1 convolution, one plane per class."""
    row = tl.program_id(0) * block_rows
    total = tl.zeros((block_rows, block_outputs), tl.float32)
    for k in range(parts):
        a = x.load([row, k * block_inputs])
        b = weights.load([0, k * block_inputs])
        total = tl.dot(a, b.T, total, input_precision=precision)
    klass = tl.arange(0, block_outputs)
    total += tl.load(bias + klass)[None, :]
    p = row + tl.arange(0, block_rows)
    image, place = p // (height * width), p % (height * width)
    y, column = place // width, place % width
    inside = (image < images) & (y < h) & (column < w)
    offset = (image.to(tl.int64) * classes * h + y) * w + column
    tl.store(
        out + offset[:, None] + klass.to(tl.int64)[None, :] * h * w,
        total,
        mask=inside[:, None] & (klass < classes)[None, :],
    )
