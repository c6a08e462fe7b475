// Check a device with an artifact's golden samples; org.json is part of Android.
package edgeline

import java.io.File
import kotlin.math.abs
import kotlin.math.max
import org.json.JSONArray
import org.json.JSONObject

class Answer(val probabilities: FloatArray, val logits: FloatArray)

class Manifest(val folder: File) {
    // If a file may have been tampered with, first compare its size and SHA-256 with the manifest.
    private val json = JSONObject(File(folder, "manifest.json").readText())
    private val preprocess = json.getJSONObject("preprocess")
    val labels = json.getJSONArray("labels").let { all -> List(all.length()) { all.getString(it) } }
    val background = preprocess.getJSONArray("background").let { all -> IntArray(3) { all.getInt(it) } }
    val spec = Spec(
        preprocess.getInt("height"),
        preprocess.getInt("width"),
        preprocess.getDouble("crop_fraction"),
        preprocess.getString("interpolation"),
        preprocess.optString("jpeg_decoding", "full") == "scaled",
    )

    init {
        require(json.getString("schema") == "edgeline.artifact/1") { "another schema of artifact" }
    }

    fun model(variant: String): File {
        val variants = json.getJSONArray("variants")
        val all = List(variants.length()) { variants.getJSONObject(it) }
        return File(folder, requireNotNull(all.find { it.getString("name") == variant }) { "no variant $variant" }.getString("file"))
    }

    fun pixels(file: File): ByteArray = pixels(file, background, spec)
}

/** Throws if a sample fails; the message shows which half differs. */
fun verify(manifest: Manifest, variant: String, answer: (ByteArray) -> Answer) {
    val golden = JSONObject(File(manifest.folder, "golden/golden.json").readText())
    val own = golden.optJSONObject("variants")?.optJSONObject(variant)
    val tolerance = (own ?: golden).getDouble("tolerance")
    val logitTolerance = (own ?: golden).optDouble("logit_tolerance", tolerance)
    val samples = golden.getJSONArray("samples")
    for (i in 0 until samples.length()) {
        val sample = samples.getJSONObject(i)
        val name = sample.getString("file")
        val answers = if (own == null) sample else sample.getJSONObject("variants").getJSONObject(variant)
        val pixels = manifest.pixels(File(manifest.folder, name))
        val stored = decode(File(manifest.folder, sample.getString("pixels")), manifest.background).rgb
        check(pixels.size == stored.size) { "$name: another size than the stored pixels" }
        val off = pixels.indices.sumOf { abs((pixels[it].toInt() and 0xFF) - (stored[it].toInt() and 0xFF)).toLong() }
        val pixelDifference = off.toDouble() / pixels.size
        check(pixelDifference <= golden.getDouble("pixel_tolerance")) {
            "$name: other pixels, by $pixelDifference; decoder, orientation, crop or resize differ"
        }
        val difference = largestDifference(answer(pixels).probabilities, floats(answers, "probabilities"))
        check(difference <= tolerance) {
            "$name: other probabilities, by $difference, from the same pixels; model or runtime differ"
        }
        val reference = floats(sample, "probabilities")
        val best = reference.indices.maxByOrNull { reference[it] }!!
        check(manifest.labels[best] == sample.getString("label")) { "$name: the labels are not in the model's order" }
        val logits = floats(answers, "logits")
        val largest = logits.fold(1f) { most, logit -> max(most, abs(logit)) }
        val logitDifference = largestDifference(answer(stored).logits, logits) / largest
        check(logitDifference <= logitTolerance) {
            "$name: other logits, by $logitDifference, from the stored pixels; model or runtime differ"
        }
    }
}

private fun floats(json: JSONObject, name: String): FloatArray {
    val all: JSONArray = json.getJSONArray(name)
    return FloatArray(all.length()) { all.getDouble(it).toFloat() }
}

private fun largestDifference(one: FloatArray, other: FloatArray): Double {
    check(one.size == other.size) { "another number of classes" }
    // NaN propagates to the result, which is then never within a tolerance.
    return one.indices.fold(0.0) { most, i -> max(most, abs(one[i].toDouble() - other[i])) }
}
