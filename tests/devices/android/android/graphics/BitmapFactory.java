package android.graphics;

import java.awt.image.BufferedImage;
import java.io.File;
import javax.imageio.ImageIO;

public class BitmapFactory {
    public static class Options {
        public Bitmap.Config inPreferredConfig;
        public boolean inJustDecodeBounds, inPremultiplied;
        public int inSampleSize = 1;
        public int outWidth, outHeight;
        public String outMimeType;
    }

    public static Bitmap decodeFile(String path, Options options) {
        try {
            BufferedImage image = ImageIO.read(new File(path));
            boolean small = !options.inJustDecodeBounds && options.inSampleSize > 1;
            Bitmap bitmap = new Bitmap(small ? reduced(image, options.inSampleSize) : image);
            options.outWidth = bitmap.getWidth();
            options.outHeight = bitmap.getHeight();
            options.outMimeType = path.endsWith(".jpg") ? "image/jpeg" : path.endsWith(".bmp") ? "image/bmp" : "image/png";
            return options.inJustDecodeBounds ? null : bitmap;
        } catch (java.io.IOException error) {
            return null;
        }
    }

    /** The mean of each block of pixels, as which libjpeg-turbo's scaled decoding comes out but for roundings and color. */
    private static BufferedImage reduced(BufferedImage from, int scale) {
        int width = (from.getWidth() + scale - 1) / scale, height = (from.getHeight() + scale - 1) / scale;
        BufferedImage to = new BufferedImage(width, height, BufferedImage.TYPE_INT_ARGB);
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width; x++) {
                int count = 0, red = 0, green = 0, blue = 0;
                for (int v = y * scale; v < Math.min((y + 1) * scale, from.getHeight()); v++)
                    for (int u = x * scale; u < Math.min((x + 1) * scale, from.getWidth()); u++, count++) {
                        int rgb = from.getRGB(u, v);
                        red += rgb >> 16 & 255;
                        green += rgb >> 8 & 255;
                        blue += rgb & 255;
                    }
                int half = count / 2;
                to.setRGB(x, y, 255 << 24 | (red + half) / count << 16 | (green + half) / count << 8 | (blue + half) / count);
            }
        return to;
    }
}
