// Decode a file with Image I/O.
import CoreGraphics
import Foundation
import ImageIO

/// An open file and its header; the image is not rotated yet.
struct Photo {
    let name: String
    let source: CGImageSource
    let width, height, orientation: Int
    let isJpeg, isBmp: Bool

    init(_ file: URL) throws {
        name = file.lastPathComponent
        let data = try Data(contentsOf: file)
        guard data.count <= 16 << 20 else { throw Failure(description: "\(name): too many bytes") }
        guard let source = CGImageSourceCreateWithData(data as CFData, nil),
            let header = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any],
            let width = header[kCGImagePropertyPixelWidth] as? Int, let height = header[kCGImagePropertyPixelHeight] as? Int
        else { throw Failure(description: "\(name): no image that this system decodes") }
        guard width * height <= 50_000_000 else { throw Failure(description: "\(name): too many pixels") }
        self.source = source
        self.width = width
        self.height = height
        orientation = header[kCGImagePropertyOrientation] as? Int ?? 1
        isJpeg = CGImageSourceGetType(source) as String? == "public.jpeg"
        isBmp = CGImageSourceGetType(source) as String? == "com.microsoft.bmp"
    }
}

/// The model's input for a file: decoded, made upright by its EXIF tag, cropped and resized.
func modelPixels(of file: URL, background: [Int], spec: Spec) throws -> [UInt8] {
    let photo = try Photo(file)
    let lies = (5...8).contains(photo.orientation)
    let (width, height) = lies ? (photo.height, photo.width) : (photo.width, photo.height)
    let scale = photo.isJpeg ? jpegScale(width: width, height: height, spec: spec) : 1
    let picture = upright(try decode(photo, background: background, scale: scale), orientation: photo.orientation)
    let box = reducedBox(width: width, height: height, orientation: photo.orientation, scale: scale, spec: spec)
    return try fit(picture, box: box, spec: spec)
}

/// The stored image at 1/scale of its size. Transparent pixels are composited on `background`.
func decode(_ photo: Photo, background: [Int], scale: Int = 1) throws -> Picture {
    let options: CFDictionary? = scale == 1 ? nil : [kCGImageSourceSubsampleFactor: scale] as CFDictionary
    guard CGImageSourceGetStatusAtIndex(photo.source, 0) == .statusComplete,
        let decoded = CGImageSourceCreateImageAtIndex(photo.source, 0, options)
    else { throw Failure(description: "\(photo.name): truncated or damaged") }
    let image = photo.isBmp ? withoutUnwrittenAlpha(decoded) : decoded
    // Image I/O treats the factor as a hint. With another size the crop would be misplaced.
    let (width, height) = ((photo.width + scale - 1) / scale, (photo.height + scale - 1) / scale)
    guard image.width == width, image.height == height
    else { throw Failure(description: "\(photo.name): decoded to another size than 1/\(scale)") }

    // Drawing in the image's own color space converts nothing: the reference ignores profiles, too.
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
    guard drawn else { throw Failure(description: "\(photo.name): cannot be drawn") }
    var picture = Picture(width: width, height: height, rgb: [UInt8](repeating: 0, count: 3 * width * height))
    for i in 0..<width * height {
        let clear = 255 - Int(rgba[4 * i + 3])  // the colors are already multiplied by alpha
        for c in 0..<3 { picture.rgb[3 * i + c] = UInt8(min(255, Int(rgba[4 * i + c]) + (background[c] * clear + 127) / 255)) }
    }
    return picture
}

/// In a BMP, alpha that is zero everywhere was never written: the same image without alpha.
private func withoutUnwrittenAlpha(_ image: CGImage) -> CGImage {
    let opaque: [CGImageAlphaInfo: CGImageAlphaInfo] = [.last: .noneSkipLast, .first: .noneSkipFirst]
    guard image.bitsPerPixel == 32, image.bitsPerComponent == 8, let without = opaque[image.alphaInfo],
        let provider = image.dataProvider, let bytes = provider.data as Data?, let space = image.colorSpace
    else { return image }
    let lastByte = (image.alphaInfo == .last) != (image.byteOrderInfo == .order32Little)
    for y in 0..<image.height {
        for x in 0..<image.width where bytes[y * image.bytesPerRow + 4 * x + (lastByte ? 3 : 0)] != 0 { return image }
    }
    let info = CGBitmapInfo(rawValue: image.bitmapInfo.rawValue & ~CGBitmapInfo.alphaInfoMask.rawValue | without.rawValue)
    return CGImage(
        width: image.width, height: image.height, bitsPerComponent: 8, bitsPerPixel: 32, bytesPerRow: image.bytesPerRow,
        space: space, bitmapInfo: info, provider: provider, decode: nil, shouldInterpolate: false,
        intent: .defaultIntent) ?? image
}
