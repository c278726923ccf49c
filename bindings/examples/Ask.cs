// Ask about a frame from C#, through the C interface by P/Invoke; .NET 6 or newer, or Mono.
//
//     dotnet run -- BUNDLE ONNXRUNTIME QUESTION...     (with this file in a console project)
//     mcs Ask.cs && mono Ask.exe BUNDLE ONNXRUNTIME QUESTION...
//
// The runtime looks for libumd_edge.so, umd_edge.dll or libumd_edge.dylib beside the program and
// where the system looks.
using System;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;

static class Native
{
    const string Library = "umd_edge";

    [StructLayout(LayoutKind.Sequential)]
    public struct OpenOptions
    {
        public uint StructSize;
        public int Threads;
        public IntPtr Variant, OnnxRuntime, Log, LogContext, Allocator, Sha256;
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct Pixels
    {
        public uint StructSize;
        public int Type;
        public IntPtr Data;
        public UIntPtr Size, Stride;
        public uint Width, Height;
        public int Photometric, Window, WindowLow, WindowHigh;
        public double WindowCentre, WindowWidth, RescaleSlope, RescaleIntercept;
        public IntPtr DicomModality, BodyPart;
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct Item
    {
        public uint StructSize;
        public int Positive;
        public IntPtr Name;
        public double Probability;
        public uint Output;
        public float Logit;
    }

    [DllImport(Library)] public static extern void umd_open_options_init(ref OpenOptions options, UIntPtr size);
    [DllImport(Library)] public static extern void umd_pixels_init(ref Pixels pixels, UIntPtr size);
    [DllImport(Library)] public static extern void umd_item_init(ref Item item, UIntPtr size);
    [DllImport(Library)] public static extern int umd_open(byte[] path, ref OpenOptions options, out Predictor predictor);
    [DllImport(Library)] public static extern void umd_close(IntPtr predictor);
    [DllImport(Library)] public static extern int umd_encode(Predictor predictor, ref Pixels pixels, IntPtr call, out Picture image);
    [DllImport(Library)] public static extern void umd_image_free(IntPtr image);
    [DllImport(Library)] public static extern int umd_ask(Picture image, byte[] question, byte[] task, IntPtr call, out Result result);
    [DllImport(Library)] public static extern int umd_get_item(Result result, uint index, ref Item item);
    [DllImport(Library)] public static extern void umd_result_free(IntPtr result);
    [DllImport(Library)] static extern IntPtr umd_last_error();

    public static UIntPtr SizeOf<T>() { return (UIntPtr)(uint)Marshal.SizeOf(typeof(T)); }

    // UTF-8 with a NUL behind it: what every text of the interface is.
    public static byte[] Utf8(string text) { return Encoding.UTF8.GetBytes(text + "\0"); }

    public static string Text(IntPtr text)
    {
        int length = 0;
        while (Marshal.ReadByte(text, length) != 0) length++;
        var bytes = new byte[length];
        Marshal.Copy(text, bytes, 0, length);
        return Encoding.UTF8.GetString(bytes);
    }

    public static void Check(int status)
    {
        if (status != 0) throw new InvalidOperationException(Text(umd_last_error()));
    }
}

// Handles that are freed once, whatever is thrown.
abstract class Handle : SafeHandle
{
    protected Handle() : base(IntPtr.Zero, true) { }
    public override bool IsInvalid { get { return handle == IntPtr.Zero; } }
}

sealed class Predictor : Handle
{
    protected override bool ReleaseHandle() { Native.umd_close(handle); return true; }
}

sealed class Picture : Handle
{
    protected override bool ReleaseHandle() { Native.umd_image_free(handle); return true; }
}

sealed class Result : Handle
{
    protected override bool ReleaseHandle() { Native.umd_result_free(handle); return true; }
}

static class Program
{
    const int Width = 64, Height = 48;

    static Predictor Open(string bundle, string onnxRuntime)
    {
        var name = GCHandle.Alloc(Native.Utf8(onnxRuntime), GCHandleType.Pinned);
        try
        {
            var options = new Native.OpenOptions();
            Native.umd_open_options_init(ref options, Native.SizeOf<Native.OpenOptions>());
            options.OnnxRuntime = name.AddrOfPinnedObject();
            Predictor predictor;
            Native.Check(Native.umd_open(Native.Utf8(bundle), ref options, out predictor));
            return predictor;
        }
        finally { name.Free(); }
    }

    static Picture Encode(Predictor predictor, byte[] frame)
    {
        var pinned = GCHandle.Alloc(frame, GCHandleType.Pinned);
        try
        {
            var pixels = new Native.Pixels();
            Native.umd_pixels_init(ref pixels, Native.SizeOf<Native.Pixels>());
            pixels.Data = pinned.AddrOfPinnedObject();
            pixels.Size = (UIntPtr)(uint)frame.Length;
            pixels.Width = Width;
            pixels.Height = Height;
            Picture image;
            Native.Check(Native.umd_encode(predictor, ref pixels, IntPtr.Zero, out image));
            return image;
        }
        finally { pinned.Free(); }
    }

    static void Ask(Picture image, string question)
    {
        Result result;
        Native.Check(Native.umd_ask(image, Native.Utf8(question), null, IntPtr.Zero, out result));
        using (result)
        {
            var item = new Native.Item();
            Native.umd_item_init(ref item, Native.SizeOf<Native.Item>());
            Native.Check(Native.umd_get_item(result, 0, ref item));
            var probability = item.Probability.ToString("R", CultureInfo.InvariantCulture);
            Console.WriteLine(Native.Text(item.Name) + "\t" + probability);
        }
    }

    static int Main(string[] arguments)
    {
        if (arguments.Length < 3)
        {
            Console.Error.WriteLine("usage: Ask BUNDLE ONNXRUNTIME QUESTION...");
            return 2;
        }
        var frame = new byte[Width * Height];
        for (int i = 0; i < frame.Length; i++) frame[i] = (byte)(i * 7);
        try
        {
            using (var predictor = Open(arguments[0], arguments[1]))
            using (var image = Encode(predictor, frame))
                for (int i = 2; i < arguments.Length; i++) Ask(image, arguments[i]);
            return 0;
        }
        catch (InvalidOperationException error)
        {
            Console.Error.WriteLine(error.Message);
            return 1;
        }
    }
}
