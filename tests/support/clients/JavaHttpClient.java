// Java's own client posts a photo by its defaults, which offer HTTP/2. Prints one line for each way: its name, a tab, the response.

import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;

class JavaHttpClient {
    static final HttpClient CLIENT = HttpClient.newHttpClient();

    static void post(String way, HttpRequest.Builder request, BodyPublisher body) throws Exception {
        System.out.println(way + "\t" + CLIENT.send(request.POST(body).build(), BodyHandlers.ofString()).body());
    }

    public static void main(String[] arguments) throws Exception {
        URI url = URI.create(arguments[0]);
        Path photo = Path.of(arguments[1]);
        post("ofFile", HttpRequest.newBuilder(url), BodyPublishers.ofFile(photo));
        post("ofInputStream (chunked)", HttpRequest.newBuilder(url), BodyPublishers.ofInputStream(() -> {
            try {
                return Files.newInputStream(photo);
            } catch (java.io.IOException error) {
                throw new java.io.UncheckedIOException(error);
            }
        }));
        post("ofFile, expectContinue", HttpRequest.newBuilder(url).expectContinue(true), BodyPublishers.ofFile(photo));
        String head = "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"photo.jpg\"\r\nContent-Type: image/jpeg\r\n\r\n";
        ByteArrayOutputStream form = new ByteArrayOutputStream();
        form.write(head.getBytes());
        form.write(Files.readAllBytes(photo));
        form.write("\r\n--B--\r\n".getBytes());
        HttpRequest.Builder multipart = HttpRequest.newBuilder(url).header("Content-Type", "multipart/form-data; boundary=B");
        post("multipart", multipart, BodyPublishers.ofByteArray(form.toByteArray()));
    }
}
