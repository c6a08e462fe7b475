// ONNX Runtime: the Swift package onnxruntime-swift-package-manager, 1.20 or newer.
import Foundation
import OnnxRuntimeBindings

final class OnnxClassifier {
    private let environment: ORTEnv
    private let session: ORTSession
    private let spec: Spec

    init(model: URL, spec: Spec) throws {
        setenv("ORT_DISABLE_TELEMETRY", "1", 1)  // before the runtime starts
        environment = try ORTEnv(loggingLevel: .warning)
        let options = try ORTSessionOptions()
        try options.addConfigEntry(withKey: "session.intra_op.allow_spinning", value: "0")  // as verified
        try options.addConfigEntry(
            withKey: "optimization.disable_specified_optimizers", value: "WeightBiasQuantization")
        session = try ORTSession(env: environment, modelPath: model.path, sessionOptions: options)
        self.spec = spec
    }

    func answer(_ pixels: [UInt8]) throws -> Answer {
        let shape: [NSNumber] = [1, NSNumber(value: spec.height), NSNumber(value: spec.width), 3]
        let image = try ORTValue(tensorData: NSMutableData(data: Data(pixels)), elementType: .uInt8, shape: shape)
        let found = try session.run(
            withInputs: ["image": image], outputNames: ["probabilities", "logits"], runOptions: nil)
        return Answer(probabilities: try floats(found["probabilities"]), logits: try floats(found["logits"]))
    }

    private func floats(_ value: ORTValue?) throws -> [Float] {
        guard let value = value else { throw Failure(description: "the model lacks an output") }
        let data = try value.tensorData() as Data
        return data.withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
    }
}
