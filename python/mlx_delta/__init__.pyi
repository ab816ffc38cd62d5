# Every public name and where it is: what type checkers read, and what __init__.py imports a name from on first use.
from . import errors as errors
from . import ops as ops
from .chat.functions import function_tool as function_tool
from .chat.result import ChatEvent as ChatEvent
from .chat.result import ChatResult as ChatResult
from .chat.result import TokenLogprob as TokenLogprob
from .chat.result import Usage as Usage
from .chat.session import Session as Session
from .chat.settings import ChatSettings as ChatSettings
from .chat.stream import ChatStream as ChatStream
from .chat.tools import ToolCall as ToolCall
from .chat.tools import create_tool_definition as create_tool_definition
from .config import ModelConfig as ModelConfig
from .conversion.pipeline import convert as convert
from .conversion.report import ConvertReport as ConvertReport
from .engine.sample import SamplingParams as SamplingParams
from .errors import MlxDeltaError as MlxDeltaError
from .evaluation import Evaluation as Evaluation
from .evaluation import evaluate as evaluate
from .language_model import LanguageModel as LanguageModel
from .loading import load_model as load_model
from .model.cache import Cache as Cache
from .options import ChatOptions as ChatOptions
from .options import GenerationOptions as GenerationOptions
from .options import SamplingOptions as SamplingOptions
from .text.generation import Generation as Generation
from .text.tokenizer import Tokenizer as Tokenizer

__version__: str
