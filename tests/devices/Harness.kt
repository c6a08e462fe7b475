// Runs docs/devices/android on this machine: the classes below android/ stand in for Android's, and the model answers by pipe.
package edgeline

import java.io.DataInputStream
import java.io.File

/**
 * `pixels`: cases on standard input, a line of arguments and raw RGB each; for each the scale of a JPEG and the pixels.
 * `photo FILE HEIGHT WIDTH CROP INTERPOLATION`: the pixels of a file. `verify FOLDER VARIANT`: the golden samples.
 */
fun main(arguments: Array<String>) {
    val input = DataInputStream(System.`in`.buffered())
    if (arguments[0] == "verify") {
        val manifest = Manifest(File(arguments[1]))
        verify(manifest, arguments[2]) { pixels ->
            System.out.write(pixels)
            System.out.flush()
            fun floats() = FloatArray(manifest.labels.size) { input.readFloat() }
            Answer(floats(), floats())
        }
        System.err.println("verified with ${manifest.model(arguments[2]).name}")
        return
    }
    if (arguments[0] == "photo") {
        val spec = Spec(arguments[2].toInt(), arguments[3].toInt(), arguments[4].toDouble(), arguments[5], true)
        System.out.write(pixels(File(arguments[1]), intArrayOf(255, 255, 255), spec))
        System.out.flush()
        return
    }
    while (true) {
        @Suppress("DEPRECATION") val case = (input.readLine() ?: return).split(" ")
        val (fullWidth, fullHeight, scale, orientation) = case.take(4).map { it.toInt() } // of the stored picture
        val spec = Spec(case[5].toInt(), case[4].toInt(), case[6].toDouble(), case[7], true)
        val picture = Picture((fullWidth + scale - 1) / scale, (fullHeight + scale - 1) / scale)
        input.readFully(picture.rgb)
        val width = if (orientation in 5..8) fullHeight else fullWidth
        val height = if (orientation in 5..8) fullWidth else fullHeight
        System.out.write(jpegScale(width, height, spec))
        System.out.write(fit(upright(picture, orientation), reducedBox(width, height, orientation, scale, spec), spec))
        System.out.flush()
    }
}

private fun Picture(width: Int, height: Int) = Picture(width, height, ByteArray(3 * width * height))
