// Runs docs/devices/android on this machine: the classes below android/ stand in for Android's, and the model answers by pipe.
package edgeline

import java.io.DataInputStream
import java.io.File

/** `pixels`: cases on standard input, a line of arguments and raw RGB each. `prove FOLDER VARIANT`: the golden samples. */
fun main(arguments: Array<String>) {
    val input = DataInputStream(System.`in`.buffered())
    if (arguments[0] == "prove") {
        val manifest = Manifest(File(arguments[1]))
        prove(manifest, arguments[2]) { pixels ->
            System.out.write(pixels)
            System.out.flush()
            fun floats() = FloatArray(manifest.labels.size) { input.readFloat() }
            Answer(floats(), floats())
        }
        System.err.println("proven with ${manifest.model(arguments[2]).name}")
        return
    }
    while (true) {
        @Suppress("DEPRECATION") val case = (input.readLine() ?: return).split(" ")
        val picture = Picture(case[0].toInt(), case[1].toInt(), ByteArray(3 * case[0].toInt() * case[1].toInt()))
        input.readFully(picture.rgb)
        val spec = Spec(case[4].toInt(), case[3].toInt(), case[5].toDouble(), case[6])
        System.out.write(fit(picture, case[2].toInt(), spec))
        System.out.flush()
    }
}
