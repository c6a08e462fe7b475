// Go's net/http posts a photo. Prints one line for each way: its name, a tab, the response.

package main

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
)

func post(way string, contentType string, body io.Reader) {
	response, err := http.Post(os.Args[1], contentType, body)
	if err != nil {
		panic(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s\t%s\n", way, text)
}

func main() {
	photo, err := os.ReadFile(os.Args[2])
	if err != nil {
		panic(err)
	}
	post("http.Post", "image/jpeg", bytes.NewReader(photo))
	post("http.Post, reader (chunked)", "application/octet-stream", io.NopCloser(bytes.NewReader(photo)))
	var form bytes.Buffer
	writer := multipart.NewWriter(&form)
	writer.WriteField("note", "from a program")
	part, err := writer.CreateFormFile("file", "photo.jpg")
	if err != nil {
		panic(err)
	}
	part.Write(photo)
	writer.Close()
	post("multipart with a field", writer.FormDataContentType(), &form)
}
