// From a decoded image to the model's input, as serve/preprocess.py: make upright, crop, resize. Plain Swift.
// Core Graphics and vImage use other filters and would fail the golden samples.
import Foundation

/// `preprocess` of the manifest; `scaledJpegs` is whether `jpeg_decoding` is present and "scaled".
struct Spec {
    let height, width: Int
    let cropFraction: Double
    let interpolation: String
    let scaledJpegs: Bool
}

/// Edges of a rectangle, in pixels.
struct Box {
    let left, top, right, bottom: Double
}

/// Rows from the top, three bytes per pixel: red, green, blue.
struct Picture {
    let width, height: Int
    var rgb: [UInt8]
}

struct Failure: Error, CustomStringConvertible {
    let description: String
}

/// The model's input: the box of an upright image.
func fit(_ picture: Picture, box: Box, spec: Spec) throws -> [UInt8] {
    let left = box.left.rounded(.down)
    let top = box.top.rounded(.down)
    let inside = Box(left: box.left - left, top: box.top - top, right: box.right - left, bottom: box.bottom - top)
    // Horizontally first, then vertically; the intermediate result is rounded to bytes, too.
    let cutOut = cut(picture, box: box)
    let across = try resizeOneWay(cutOut, inside, to: spec.width, down: false, interpolation: spec.interpolation)
    return try resizeOneWay(across, inside, to: spec.height, down: true, interpolation: spec.interpolation).rgb
}

/// Undo the orientation, the value of EXIF tag 0x0112.
func upright(_ from: Picture, orientation: Int) -> Picture {
    guard (2...8).contains(orientation) else { return from }
    let swapped = orientation >= 5
    let flipX = [2, 3, 7, 8].contains(orientation)
    let flipY = [3, 4, 6, 7].contains(orientation)
    let width = swapped ? from.height : from.width
    let height = swapped ? from.width : from.height
    var rgb = [UInt8](repeating: 0, count: from.rgb.count)
    for y in 0..<height {
        for x in 0..<width {
            let u = swapped ? y : x
            let v = swapped ? x : y
            let column = flipX ? from.width - 1 - u : u
            let row = flipY ? from.height - 1 - v : v
            for c in 0..<3 { rgb[3 * (y * width + x) + c] = from.rgb[3 * (row * from.width + column) + c] }
        }
    }
    return Picture(width: width, height: height, rgb: rgb)
}

/// The centered rectangle of the model's aspect ratio, in whole pixels of an upright image of this size.
func cropBox(width: Int, height: Int, spec: Spec) -> Box {
    let scale = min(Double(width) / Double(spec.width), Double(height) / Double(spec.height)) * spec.cropFraction
    let across = max(1, Int((Double(spec.width) * scale).rounded(.toNearestOrEven)))
    let down = max(1, Int((Double(spec.height) * scale).rounded(.toNearestOrEven)))
    let left = (width - across) / 2
    let top = (height - down) / 2
    return Box(left: Double(left), top: Double(top), right: Double(left + across), bottom: Double(top + down))
}

/// The divisor by which a JPEG is reduced while decoding; its sides are rounded up. The size is that of the upright image.
func jpegScale(width: Int, height: Int, spec: Spec) -> Int {
    let box = cropBox(width: width, height: height, spec: spec)
    let scales = spec.scaledJpegs ? [8, 4, 2] : []
    return scales.first {
        box.right - box.left >= Double(2 * $0 * spec.width) && box.bottom - box.top >= Double(2 * $0 * spec.height)
    } ?? 1
}

/// `cropBox` in the upright image that was decoded at 1/scale. The last stored row and column were padded to whole pixels;
/// rotated or mirrored, they may come first.
func reducedBox(width: Int, height: Int, orientation: Int, scale: Int, spec: Spec) -> Box {
    let box = cropBox(width: width, height: height, spec: spec)
    let x = Double([2, 3, 6, 7].contains(orientation) ? (scale - width % scale) % scale : 0)
    let y = Double([3, 4, 7, 8].contains(orientation) ? (scale - height % scale) % scale : 0)
    let by = Double(scale)
    return Box(left: (box.left + x) / by, top: (box.top + y) / by, right: (box.right + x) / by, bottom: (box.bottom + y) / by)
}

/// The whole pixels that a rectangle touches.
func cut(_ from: Picture, box: Box) -> Picture {
    let left = Int(box.left.rounded(.down))
    let top = Int(box.top.rounded(.down))
    let width = Int(box.right.rounded(.up)) - left
    let height = Int(box.bottom.rounded(.up)) - top
    var rgb = [UInt8]()
    rgb.reserveCapacity(3 * width * height)
    for y in 0..<height {
        let start = 3 * ((top + y) * from.width + left)
        rgb.append(contentsOf: from.rgb[start..<start + 3 * width])
    }
    return Picture(width: width, height: height, rgb: rgb)
}

private func sinc(_ x: Double) -> Double { x == 0 ? 1 : sin(Double.pi * x) / (Double.pi * x) }

/// A filter's radius and its weights.
private func filter(named name: String) throws -> (reach: Double, weight: (Double) -> Double) {
    switch name {
    case "bilinear":
        return (1, { x in max(0, 1 - abs(x)) })
    case "bicubic":
        return (2, { signed in
            let x = abs(signed)
            if x < 1 { return (1.5 * x - 2.5) * x * x + 1 }
            return x < 2 ? ((x - 5) * x + 8) * x * -0.5 + 2 : 0
        })
    case "lanczos":
        return (3, { x in x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0 })
    default:
        throw Failure(description: "interpolation \(name) is not known; bilinear, bicubic and lanczos are")
    }
}

private let bits = 22  // fractional bits

/// The weighted input pixels of one output pixel.
private struct Taps {
    let first: Int
    let weights: [Int]
}

/// Resize `from` pixels, of which those between the two edges become `to`.
private func taps(from: Int, edges: (Double, Double), to: Int, interpolation: String) throws -> [Taps] {
    let (reach, weight) = try filter(named: interpolation)
    let scale = (edges.1 - edges.0) / Double(to)
    let stretch = max(scale, 1)  // shrinking widens the filter: this is the antialiasing
    return (0..<to).map { i in
        let center = edges.0 + (Double(i) + 0.5) * scale
        let first = max(0, Int(center - reach * stretch + 0.5))
        let end = min(from, Int(center + reach * stretch + 0.5))
        let weights = (first..<end).map { k in weight((Double(k) - center + 0.5) * (1 / stretch)) }
        let sum = weights.reduce(0, +)
        return Taps(first: first, weights: weights.map { Int(($0 / sum * Double(1 << bits)).rounded()) })
    }
}

private func resizeOneWay(
    _ from: Picture, _ box: Box, to size: Int, down: Bool, interpolation: String
) throws -> Picture {
    let edges = down ? (box.top, box.bottom) : (box.left, box.right)
    let all = try taps(from: down ? from.height : from.width, edges: edges, to: size, interpolation: interpolation)
    let width = down ? from.width : size
    let height = down ? size : from.height
    let step = down ? 3 * from.width : 3
    var rgb = [UInt8](repeating: 0, count: 3 * width * height)
    for y in 0..<height {
        for x in 0..<width {
            let tap = all[down ? y : x]
            let start = 3 * (down ? tap.first * from.width + x : y * from.width + tap.first)
            for c in 0..<3 {
                var sum = 1 << (bits - 1)  // one half, so that the shift rounds
                for k in 0..<tap.weights.count { sum += tap.weights[k] * Int(from.rgb[start + k * step + c]) }
                rgb[3 * (y * width + x) + c] = UInt8(min(max(sum >> bits, 0), 255))
            }
        }
    }
    return Picture(width: width, height: height, rgb: rgb)
}
