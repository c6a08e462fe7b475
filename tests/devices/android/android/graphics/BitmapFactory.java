package android.graphics;

public class BitmapFactory {
    public static class Options {
        public Bitmap.Config inPreferredConfig;
        public boolean inJustDecodeBounds, inPremultiplied;
        public int outWidth, outHeight;
    }

    public static Bitmap decodeFile(String path, Options options) {
        try {
            Bitmap bitmap = new Bitmap(javax.imageio.ImageIO.read(new java.io.File(path)));
            options.outWidth = bitmap.getWidth();
            options.outHeight = bitmap.getHeight();
            return options.inJustDecodeBounds ? null : bitmap;
        } catch (java.io.IOException error) {
            return null;
        }
    }
}
