// Core ML, for an `.mlpackage` that was added to the app or compiled with MLModel.compileModel(at:).
import CoreML
import Foundation

final class CoreMLClassifier {
    private let model: MLModel
    private let constraint: MLMultiArrayConstraint

    init(compiled: URL, spec: Spec) throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = .cpuOnly  // prove this first; .all may compute in half precision
        model = try MLModel(contentsOf: compiled, configuration: configuration)
        let expected = [1, spec.height, spec.width, 3].map { NSNumber(value: $0) }
        guard let image = model.modelDescription.inputDescriptionsByName["image"]?.multiArrayConstraint, image.shape == expected
        else { throw Failure(description: "the model does not take an array `image` of \(expected)") }
        constraint = image
    }

    func answer(_ pixels: [UInt8]) throws -> Answer {
        // Core ML has no arrays of bytes: the same values travel as the type that the model asks for.
        let image = try MLMultiArray(shape: constraint.shape, dataType: constraint.dataType)
        for i in 0..<pixels.count { image[i] = NSNumber(value: pixels[i]) }
        let found = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: ["image": image]))
        return Answer(probabilities: try floats(found, "probabilities"), logits: try floats(found, "logits"))
    }

    private func floats(_ found: MLFeatureProvider, _ name: String) throws -> [Float] {
        guard let values = found.featureValue(for: name)?.multiArrayValue
        else { throw Failure(description: "the model has no output \(name)") }
        return (0..<values.count).map { values[$0].floatValue }
    }
}
