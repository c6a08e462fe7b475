// From a decoded image to the model's input, bit-identical to serve/preprocess.py: make upright, crop, resize.
// Plain Kotlin. Android's own scaling uses other filters and would fail the golden samples.
package edgeline

import kotlin.math.PI
import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min
import kotlin.math.round
import kotlin.math.sin

/** `preprocess` of the manifest; [scaledJpegs] is whether `jpeg_decoding` is present and "scaled". */
class Spec(val height: Int, val width: Int, val cropFraction: Double, val interpolation: String, val scaledJpegs: Boolean)

/** Rows from the top, three bytes per pixel: red, green, blue. */
class Picture(val width: Int, val height: Int, val rgb: ByteArray)

/** Edges of a rectangle, in pixels. */
class Box(val left: Double, val top: Double, val right: Double, val bottom: Double)

/** The model's input: the [box] of an upright image. */
fun fit(picture: Picture, box: Box, spec: Spec): ByteArray {
    val left = floor(box.left)
    val top = floor(box.top)
    val inside = Box(box.left - left, box.top - top, box.right - left, box.bottom - top)
    // Horizontally first, then vertically; the intermediate result is rounded to bytes, too.
    val across = resizeOneWay(cut(picture, box), inside, spec.width, false, spec.interpolation)
    return resizeOneWay(across, inside, spec.height, true, spec.interpolation).rgb
}

/** Undo the [orientation], the value of EXIF tag 0x0112. */
fun upright(from: Picture, orientation: Int): Picture {
    if (orientation !in 2..8) return from
    val swapped = orientation >= 5
    val flipX = orientation in setOf(2, 3, 7, 8)
    val flipY = orientation in setOf(3, 4, 6, 7)
    val width = if (swapped) from.height else from.width
    val height = if (swapped) from.width else from.height
    val rgb = ByteArray(from.rgb.size)
    for (y in 0 until height) for (x in 0 until width) {
        val u = if (swapped) y else x
        val v = if (swapped) x else y
        val column = if (flipX) from.width - 1 - u else u
        val row = if (flipY) from.height - 1 - v else v
        from.rgb.copyInto(rgb, 3 * (y * width + x), 3 * (row * from.width + column), 3 * (row * from.width + column) + 3)
    }
    return Picture(width, height, rgb)
}

/** The centered rectangle of the model's aspect ratio, in whole pixels of an upright image of this size. */
fun cropBox(width: Int, height: Int, spec: Spec): Box {
    val scale = min(width / spec.width.toDouble(), height / spec.height.toDouble()) * spec.cropFraction
    val across = max(1, round(spec.width * scale).toInt()) // halves to even
    val down = max(1, round(spec.height * scale).toInt())
    val left = (width - across) / 2
    val top = (height - down) / 2
    return Box(left.toDouble(), top.toDouble(), (left + across).toDouble(), (top + down).toDouble())
}

/** The divisor by which a JPEG is reduced while decoding; its sides are rounded up. The size is that of the upright image. */
fun jpegScale(width: Int, height: Int, spec: Spec): Int {
    val box = cropBox(width, height, spec)
    val scales = if (spec.scaledJpegs) listOf(8, 4, 2) else listOf()
    return scales.find { box.right - box.left >= 2 * it * spec.width && box.bottom - box.top >= 2 * it * spec.height } ?: 1
}

/**
 * [cropBox] in the upright image that was decoded at 1/[scale]. The last stored row and column were padded to whole pixels;
 * rotated or mirrored, they may come first.
 */
fun reducedBox(width: Int, height: Int, orientation: Int, scale: Int, spec: Spec): Box {
    val box = cropBox(width, height, spec)
    val x = if (orientation in setOf(2, 3, 6, 7)) (scale - width % scale) % scale else 0
    val y = if (orientation in setOf(3, 4, 7, 8)) (scale - height % scale) % scale else 0
    return Box((box.left + x) / scale, (box.top + y) / scale, (box.right + x) / scale, (box.bottom + y) / scale)
}

/** The whole pixels that a rectangle touches. */
fun cut(from: Picture, box: Box): Picture {
    val left = floor(box.left).toInt()
    val top = floor(box.top).toInt()
    val width = ceil(box.right).toInt() - left
    val height = ceil(box.bottom).toInt() - top
    val rgb = ByteArray(3 * width * height)
    for (y in 0 until height) {
        val start = 3 * ((top + y) * from.width + left)
        from.rgb.copyInto(rgb, 3 * y * width, start, start + 3 * width)
    }
    return Picture(width, height, rgb)
}

private fun sinc(x: Double) = if (x == 0.0) 1.0 else sin(PI * x) / (PI * x)

/** A filter's radius and its weights. */
private fun filterOf(name: String): Pair<Double, (Double) -> Double> = when (name) {
    "bilinear" -> 1.0 to { x -> max(0.0, 1 - abs(x)) }
    "bicubic" -> 2.0 to { signed ->
        val x = abs(signed)
        if (x < 1) (1.5 * x - 2.5) * x * x + 1 else if (x < 2) ((x - 5) * x + 8) * x * -0.5 + 2 else 0.0
    }
    "lanczos" -> 3.0 to { x -> if (x >= -3 && x < 3) sinc(x) * sinc(x / 3) else 0.0 }
    else -> error("interpolation $name is not known; bilinear, bicubic and lanczos are")
}

private const val BITS = 22 // fractional bits: of 32 bits, two are left for overshoot and eight for the value

/** The weighted input pixels of one output pixel. */
private class Taps(val first: Int, val weights: IntArray)

/** Resize [from] pixels, of which those between the two edges become [to]. */
private fun tapsOf(from: Int, firstEdge: Double, lastEdge: Double, to: Int, interpolation: String): List<Taps> {
    val (reach, weight) = filterOf(interpolation)
    val scale = (lastEdge - firstEdge) / to
    val stretch = max(scale, 1.0) // shrinking widens the filter: this is the antialiasing
    return List(to) { i ->
        val center = firstEdge + (i + 0.5) * scale
        val first = max(0, (center - reach * stretch + 0.5).toInt())
        val end = min(from, (center + reach * stretch + 0.5).toInt())
        val weights = DoubleArray(end - first) { k -> weight((first + k - center + 0.5) * (1 / stretch)) }
        val sum = weights.sum()
        Taps(first, IntArray(weights.size) { k -> round(weights[k] / sum * (1 shl BITS)).toInt() })
    }
}

private fun resizeOneWay(from: Picture, box: Box, size: Int, down: Boolean, interpolation: String): Picture {
    val taps = if (down) tapsOf(from.height, box.top, box.bottom, size, interpolation)
    else tapsOf(from.width, box.left, box.right, size, interpolation)
    val width = if (down) from.width else size
    val height = if (down) size else from.height
    val rgb = ByteArray(3 * width * height)
    val step = if (down) 3 * from.width else 3
    for (y in 0 until height) for (x in 0 until width) {
        val tap = taps[if (down) y else x]
        val start = 3 * (if (down) tap.first * from.width + x else y * from.width + tap.first)
        for (c in 0 until 3) {
            var sum = 1 shl (BITS - 1) // one half, so that the shift rounds
            for (k in tap.weights.indices) sum += tap.weights[k] * (from.rgb[start + k * step + c].toInt() and 0xFF)
            rgb[3 * (y * width + x) + c] = (sum shr BITS).coerceIn(0, 255).toByte()
        }
    }
    return Picture(width, height, rgb)
}
