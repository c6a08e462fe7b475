package android.media;

public class ExifInterface {
    public static final String TAG_ORIENTATION = "Orientation";

    private final String path;

    public ExifInterface(String path) throws java.io.IOException { this.path = path; }

    public int getAttributeInt(String tag, int otherwise) { return path.contains(".turned.") ? 6 : otherwise; }
}
