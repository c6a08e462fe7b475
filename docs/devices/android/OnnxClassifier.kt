// ONNX Runtime: implementation("com.microsoft.onnxruntime:onnxruntime-android:1.20.0") or newer.
package edgeline

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.io.File
import java.nio.ByteBuffer

class OnnxClassifier(model: File, private val spec: Spec) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session = OrtSession.SessionOptions().use { options ->
        options.addConfigEntry("session.intra_op.allow_spinning", "0") // as verified
        options.addConfigEntry("optimization.disable_specified_optimizers", "WeightBiasQuantization")
        environment.createSession(model.readBytes(), options)
    }

    fun answer(pixels: ByteArray): Answer {
        val bytes = ByteBuffer.allocateDirect(pixels.size).put(pixels)
        bytes.rewind()
        val shape = longArrayOf(1, spec.height.toLong(), spec.width.toLong(), 3)
        return OnnxTensor.createTensor(environment, bytes, shape, OnnxJavaType.UINT8).use { image ->
            session.run(mapOf("image" to image), setOf("probabilities", "logits")).use { found ->
                Answer(floats(found, "probabilities"), floats(found, "logits"))
            }
        }
    }

    private fun floats(found: OrtSession.Result, name: String): FloatArray {
        val values = (found[name].get() as OnnxTensor).floatBuffer
        return FloatArray(values.remaining()).also { values.get(it) }
    }

    override fun close() = session.close()
}
