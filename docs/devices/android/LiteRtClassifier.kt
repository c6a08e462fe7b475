// LiteRT: implementation("com.google.ai.edge.litert:litert:1.4.0"), for a `.tflite` file.
package edgeline

import java.io.File
import java.nio.ByteBuffer
import org.tensorflow.lite.DataType
import org.tensorflow.lite.Interpreter

class LiteRtClassifier(model: File, spec: Spec, private val classes: Int) : AutoCloseable {
    private val interpreter = Interpreter(model)

    init {
        val image = interpreter.getInputTensor(0)
        require(image.dataType() == DataType.UINT8 && image.shape().contentEquals(intArrayOf(1, spec.height, spec.width, 3))) {
            "the model takes ${image.dataType()} ${image.shape().contentToString()}, expected UINT8 as in the manifest"
        }
    }

    fun answer(pixels: ByteArray): Answer {
        val bytes = ByteBuffer.allocateDirect(pixels.size).put(pixels)
        bytes.rewind()
        val probabilities = arrayOf(FloatArray(classes))
        val logits = arrayOf(FloatArray(classes))
        // By name: the order of the outputs in the file is different.
        val outputs = mapOf<String, Any>("probabilities" to probabilities, "logits" to logits)
        interpreter.runSignature(mapOf<String, Any>("image" to bytes), outputs)
        return Answer(probabilities[0], logits[0])
    }

    override fun close() = interpreter.close()
}
