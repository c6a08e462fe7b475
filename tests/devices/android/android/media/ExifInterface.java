package android.media;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;

public class ExifInterface {
    public static final String TAG_ORIENTATION = "Orientation";

    private final String bytes;

    public ExifInterface(String path) throws java.io.IOException {
        bytes = new String(Files.readAllBytes(Path.of(path)), StandardCharsets.ISO_8859_1);
    }

    /** Where the entry of the tag stands in the file, in either order of bytes: no parser, but enough for golden samples. */
    public int getAttributeInt(String tag, int otherwise) {
        int little = bytes.indexOf("\u0012\u0001\u0003\0\u0001\0\0\0"), big = bytes.indexOf("\u0001\u0012\0\u0003\0\0\0\u0001\0");
        return little >= 0 ? bytes.charAt(little + 8) : big >= 0 ? bytes.charAt(big + 9) : otherwise;
    }
}
