// Decode a file with Image I/O.
import CoreGraphics
import Foundation
import ImageIO

/// A file's picture as it lies, and how its EXIF tag says to turn it. Transparent pixels are laid on `background`.
func decode(_ file: URL, background: [Int]) throws -> (picture: Picture, orientation: Int) {
    let data = try Data(contentsOf: file)
    guard data.count <= 16 << 20 else { throw Failure(description: "\(file.lastPathComponent): too many bytes") }
    guard let source = CGImageSourceCreateWithData(data as CFData, nil),
        let header = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any],
        let width = header[kCGImagePropertyPixelWidth] as? Int, let height = header[kCGImagePropertyPixelHeight] as? Int
    else { throw Failure(description: "\(file.lastPathComponent): no image that this system decodes") }
    guard width * height <= 50_000_000 else { throw Failure(description: "\(file.lastPathComponent): too many pixels") }
    guard CGImageSourceGetStatusAtIndex(source, 0) == .statusComplete,
        let image = CGImageSourceCreateImageAtIndex(source, 0, nil)
    else { throw Failure(description: "\(file.lastPathComponent): truncated or damaged") }

    // Drawn in the picture's own colour space nothing is converted: the reference ignores profiles, too.
    var space = CGColorSpaceCreateDeviceRGB()
    if let own = image.colorSpace, own.model == .rgb, own.supportsOutput { space = own }
    var rgba = [UInt8](repeating: 0, count: 4 * width * height)
    let drawn = rgba.withUnsafeMutableBytes { bytes -> Bool in
        guard let context = CGContext(
            data: bytes.baseAddress, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width, space: space,
            bitmapInfo: CGImageAlphaInfo.premultipliedLast.rawValue)
        else { return false }
        context.setBlendMode(.copy)
        context.interpolationQuality = .none
        context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
        return true
    }
    guard drawn else { throw Failure(description: "\(file.lastPathComponent): cannot be drawn") }
    var picture = Picture(width: width, height: height, rgb: [UInt8](repeating: 0, count: 3 * width * height))
    for i in 0..<width * height {
        let clear = 255 - Int(rgba[4 * i + 3])  // the colours are multiplied by alpha already
        for c in 0..<3 { picture.rgb[3 * i + c] = UInt8(min(255, Int(rgba[4 * i + c]) + (background[c] * clear + 127) / 255)) }
    }
    return (picture, header[kCGImagePropertyOrientation] as? Int ?? 1)
}
