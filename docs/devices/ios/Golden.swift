// Check a device with an artifact's golden samples.
import Foundation

struct Answer {
    let probabilities, logits: [Float]
}

struct Manifest: Decodable {
    struct Preprocess: Decodable {
        let height, width: Int
        let crop_fraction: Double
        let interpolation: String
        let background: [Int]
        let jpeg_decoding: String?
    }
    struct Variant: Decodable {
        let name, file: String
    }
    let schema: String
    let labels: [String]
    let preprocess: Preprocess
    let variants: [Variant]

    var spec: Spec {
        Spec(
            height: preprocess.height, width: preprocess.width, cropFraction: preprocess.crop_fraction,
            interpolation: preprocess.interpolation, scaledJpegs: preprocess.jpeg_decoding == "scaled")
    }

    /// Read the artifact in `folder`. If a file may have been tampered with, first compare sizes and SHA-256s.
    static func read(_ folder: URL) throws -> Manifest {
        let data = try Data(contentsOf: folder.appendingPathComponent("manifest.json"))
        let manifest = try JSONDecoder().decode(Manifest.self, from: data)
        guard manifest.schema == "edgeline.artifact/1" else { throw Failure(description: "another schema of artifact") }
        return manifest
    }

    func pixels(_ file: URL) throws -> [UInt8] {
        try modelPixels(of: file, background: preprocess.background, spec: spec)
    }
}

private struct Golden: Decodable {
    struct Tolerances: Decodable {
        let tolerance: Double
        let logit_tolerance: Double?
    }
    struct Answers: Decodable {
        let probabilities, logits: [Float]
    }
    struct Sample: Decodable {
        let file, pixels, label: String
        let probabilities, logits: [Float]
        let variants: [String: Answers]?
    }
    let tolerance, pixel_tolerance: Double
    let logit_tolerance: Double?
    let samples: [Sample]
    let variants: [String: Tolerances]?
}

/// Throws if a sample fails; the message shows which half differs.
func verify(_ folder: URL, _ manifest: Manifest, variant: String, answer: ([UInt8]) throws -> Answer) throws {
    let data = try Data(contentsOf: folder.appendingPathComponent("golden/golden.json"))
    let golden = try JSONDecoder().decode(Golden.self, from: data)
    let own = golden.variants?[variant]
    let tolerance = own?.tolerance ?? golden.tolerance
    let logitTolerance = (own == nil ? golden.logit_tolerance : own?.logit_tolerance) ?? tolerance
    for sample in golden.samples {
        let name = sample.file
        func must(_ holds: Bool, _ what: String) throws {
            if !holds { throw Failure(description: "\(name): \(what)") }
        }
        let answers = own == nil ? nil : sample.variants?[variant]
        let pixels = try manifest.pixels(folder.appendingPathComponent(name))
        let storedFile = try Photo(folder.appendingPathComponent(sample.pixels))
        let stored = try decode(storedFile, background: manifest.preprocess.background).rgb
        try must(pixels.count == stored.count, "another size than the stored pixels")
        let off = zip(pixels, stored).reduce(0) { $0 + abs(Int($1.0) - Int($1.1)) }
        let pixelDifference = Double(off) / Double(pixels.count)
        try must(
            pixelDifference <= golden.pixel_tolerance,
            "other pixels, by \(pixelDifference); decoder, orientation, crop or resize differ")
        let difference = largestDifference(try answer(pixels).probabilities, answers?.probabilities ?? sample.probabilities)
        try must(
            difference <= tolerance,
            "other probabilities, by \(difference), from the same pixels; model or runtime differ")
        let best = sample.probabilities.indices.max { sample.probabilities[$0] < sample.probabilities[$1] }!
        try must(manifest.labels[best] == sample.label, "the labels are not in the model's order")
        let logits = answers?.logits ?? sample.logits
        let largest = logits.reduce(Float(1)) { max($0, abs($1)) }
        let logitDifference = largestDifference(try answer(stored).logits, logits) / Double(largest)
        try must(
            logitDifference <= logitTolerance,
            "other logits, by \(logitDifference), from the stored pixels; model or runtime differ")
    }
}

private func largestDifference(_ one: [Float], _ other: [Float]) -> Double {
    guard one.count == other.count, one.allSatisfy({ $0.isFinite }) else { return .infinity }
    return zip(one, other).reduce(0) { max($0, abs(Double($1.0) - Double($1.1))) }
}
