// OkHttp, Android's usual client, posts a photo. Prints one line for each way: its name, a tab, the response.

import java.io.File;
import okhttp3.MediaType;
import okhttp3.MultipartBody;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.RequestBody;
import okhttp3.Response;

class OkHttp {
    static final OkHttpClient CLIENT = new OkHttpClient();

    static void post(String way, String url, RequestBody body) throws Exception {
        try (Response response = CLIENT.newCall(new Request.Builder().url(url).post(body).build()).execute()) {
            System.out.println(way + "\t" + response.body().string());
        }
    }

    public static void main(String[] arguments) throws Exception {
        String url = arguments[0];
        RequestBody photo = RequestBody.create(MediaType.parse("image/jpeg"), new File(arguments[1]));
        post("RequestBody", url, photo);
        MultipartBody.Builder form = new MultipartBody.Builder().setType(MultipartBody.FORM);
        post("MultipartBody", url, form.addFormDataPart("file", "photo.jpg", photo).build());
        post("MultipartBody with a field", url, form.addFormDataPart("note", "from a phone").build());
    }
}
