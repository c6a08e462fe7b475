package org.tensorflow.lite;

public final class Interpreter implements AutoCloseable {
    public Interpreter(java.io.File model) {}
    public Tensor getInputTensor(int index) { return null; }
    public void runForMultipleInputsOutputs(Object[] inputs, java.util.Map<Integer, Object> outputs) {}
    public void close() {}
}
