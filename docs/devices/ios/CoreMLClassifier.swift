// Core ML, for an `.mlpackage` that was added to the app or compiled with MLModel.compileModel(at:).
import CoreML
import CoreVideo
import Foundation

final class CoreMLClassifier {
    private let model: MLModel
    private let spec: Spec

    init(compiled: URL, spec: Spec) throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = .cpuOnly  // check this first, then .all
        model = try MLModel(contentsOf: compiled, configuration: configuration)
        self.spec = spec
        guard let image = model.modelDescription.inputDescriptionsByName["image"]?.imageConstraint,
            image.pixelsWide == spec.width, image.pixelsHigh == spec.height
        else { throw Failure(description: "the model does not take a picture `image` of \(spec.width) x \(spec.height)") }
    }

    func answer(_ pixels: [UInt8]) throws -> Answer {
        let image = try MLFeatureValue(pixelBuffer: buffer(pixels))
        let found = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: ["image": image]))
        return Answer(probabilities: try floats(found, "probabilities"), logits: try floats(found, "logits"))
    }

    /// The pixels in Core ML's format: four bytes each, blue first. The size is exactly that of the model's input, so nothing
    /// is resized.
    private func buffer(_ pixels: [UInt8]) throws -> CVPixelBuffer {
        var made: CVPixelBuffer?
        CVPixelBufferCreate(nil, spec.width, spec.height, kCVPixelFormatType_32BGRA, nil, &made)
        guard let buffer = made else { throw Failure(description: "no memory for a picture") }
        CVPixelBufferLockBaseAddress(buffer, [])
        defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
        let base = CVPixelBufferGetBaseAddress(buffer)!.assumingMemoryBound(to: UInt8.self)
        let rowBytes = CVPixelBufferGetBytesPerRow(buffer)
        for y in 0..<spec.height {
            for x in 0..<spec.width {
                let from = 3 * (y * spec.width + x)
                let to = base + y * rowBytes + 4 * x
                (to[0], to[1], to[2], to[3]) = (pixels[from + 2], pixels[from + 1], pixels[from], 255)
            }
        }
        return buffer
    }

    private func floats(_ found: MLFeatureProvider, _ name: String) throws -> [Float] {
        guard let values = found.featureValue(for: name)?.multiArrayValue
        else { throw Failure(description: "the model has no output \(name)") }
        return (0..<values.count).map { values[$0].floatValue }
    }
}
