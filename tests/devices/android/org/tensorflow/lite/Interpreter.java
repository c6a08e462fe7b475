package org.tensorflow.lite;

public final class Interpreter implements AutoCloseable {
    public Interpreter(java.io.File model) {}
    public Tensor getInputTensor(int index) { return null; }
    public void runSignature(java.util.Map<String, Object> inputs, java.util.Map<String, Object> outputs) {}
    public void close() {}
}
