package android.graphics;

import java.awt.image.BufferedImage;

public final class Bitmap {
    public enum Config { ARGB_8888 }

    private final BufferedImage image;

    Bitmap(BufferedImage image) { this.image = image; }

    public int getWidth() { return image.getWidth(); }
    public int getHeight() { return image.getHeight(); }
    public int getByteCount() { return 4 * getWidth() * getHeight(); }
    public void recycle() {}

    public void copyPixelsToBuffer(java.nio.Buffer buffer) {
        for (int argb : image.getRGB(0, 0, getWidth(), getHeight(), null, 0, getWidth()))
            ((java.nio.ByteBuffer) buffer).putInt(Integer.rotateLeft(argb, 8));
    }
}
