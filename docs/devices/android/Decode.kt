// Decode a file on Android, API 24 or newer.
package edgeline

import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.media.ExifInterface
import java.io.File
import java.nio.ByteBuffer

private const val MAX_BYTES = 16L shl 20
private const val MAX_PIXELS = 50_000_000L

/** The model's input for a file: decoded, made upright by its EXIF tag, cropped and resized. */
fun pixels(file: File, background: IntArray, spec: Spec): ByteArray {
    val bounds = boundsOf(file)
    val orientation = orientationOf(file)
    val width = if (orientation in 5..8) bounds.outHeight else bounds.outWidth
    val height = if (orientation in 5..8) bounds.outWidth else bounds.outHeight
    // For a JPEG, Android's decoder also computes fewer terms of the cosine transform, and rounds the size up.
    val scale = if (bounds.outMimeType == "image/jpeg") jpegScale(width, height, spec) else 1
    val picture = decode(file, background, scale)
    check(picture.width == (bounds.outWidth + scale - 1) / scale && picture.height == (bounds.outHeight + scale - 1) / scale) {
        "$file: decoded to another size than 1/$scale"
    }
    return fit(upright(picture, orientation), reducedBox(width, height, orientation, scale, spec), spec)
}

/** The stored image at 1/[scale] of its size. Transparent pixels are composited on [background]. */
fun decode(file: File, background: IntArray, scale: Int = 1): Picture {
    val bounds = boundsOf(file)
    val options = BitmapFactory.Options().apply {
        inPreferredConfig = Bitmap.Config.ARGB_8888
        inPremultiplied = false
        inSampleSize = scale
    }
    val bitmap = requireNotNull(BitmapFactory.decodeFile(file.path, options)) { "$file: no image that Android decodes" }
    val rgba = ByteBuffer.allocate(bitmap.byteCount)
    bitmap.copyPixelsToBuffer(rgba) // not getPixels, which would convert a wide-gamut photo to sRGB
    val count = bitmap.width * bitmap.height
    val picture = Picture(bitmap.width, bitmap.height, ByteArray(3 * count))
    // In a BMP, alpha that is zero everywhere was never written.
    val opaque = bounds.outMimeType == "image/bmp" && (0 until count).all { rgba[4 * it + 3] == 0.toByte() }
    for (i in 0 until count) {
        val alpha = if (opaque) 255 else rgba[4 * i + 3].toInt() and 0xFF
        for (c in 0 until 3) {
            val value = rgba[4 * i + c].toInt() and 0xFF
            picture.rgb[3 * i + c] = ((value * alpha + background[c] * (255 - alpha) + 127) / 255).toByte()
        }
    }
    bitmap.recycle()
    return picture
}

/** Size and format from the header; throws if they are over the limits. */
private fun boundsOf(file: File): BitmapFactory.Options {
    require(file.length() <= MAX_BYTES) { "$file: too many bytes" }
    val bounds = BitmapFactory.Options().apply { inJustDecodeBounds = true }
    BitmapFactory.decodeFile(file.path, bounds)
    require(bounds.outWidth.toLong() * bounds.outHeight <= MAX_PIXELS) { "$file: too many pixels" }
    return bounds
}

/** EXIF tag 0x0112; 1 if it is missing. */
fun orientationOf(file: File): Int = ExifInterface(file.path).getAttributeInt(ExifInterface.TAG_ORIENTATION, 1)
