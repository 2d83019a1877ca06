import folder_paths
from comfy_api.latest import io

from ...unipic_core.rewards.canaries import STATISTICS
from ...unipic_core.rewards.rubrics import RUBRICS
from .folders import model_path
from .types import CATEGORY, REWARD, reward

MODEL = "A folder in ComfyUI/models, or the name of a model on Hugging Face that was downloaded already."


def schema(kind: str, name: str, description: str, inputs: list) -> io.Schema:
    return io.Schema(
        node_id=f"UniPic{kind}Reward",
        display_name=f"UniPic {name} Reward",
        category=f"{CATEGORY}/rewards",
        description=description,
        inputs=inputs,
        outputs=[REWARD.Output(display_name="reward", tooltip="For UniPic GRPO Trainer or UniPic Combine Rewards.")],
    )


class UniPicGenEvalReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "GenEval",
            "GenEval",
            "Objects, counts, colours and places, by GenEval's rules. The dataset: GenEval's JSON lines, or shapes.",
            [
                io.Combo.Input(
                    "mode",
                    options=["partial", "strict"],
                    tooltip="partial gives points for parts of a prompt and is what to train on; strict is GenEval's "
                    "own 1 or 0.",
                ),
                io.Combo.Input(
                    "detector",
                    options=["mask2former", "open_vocabulary", "shapes"],
                    tooltip="Who finds the objects. mask2former: instance segmentation of COCO's classes, GenEval's "
                    "kind. open_vocabulary: OWL-ViT, Grounding DINO and the like. shapes: the demo's world, no model.",
                ),
                io.String.Input("model", default="", tooltip=f"The detector. {MODEL} Not needed for shapes."),
                io.String.Input(
                    "colors",
                    default="openai/clip-vit-large-patch14",
                    tooltip=f"The CLIP model that names colours. {MODEL} Not needed for shapes.",
                ),
            ],
        )

    @classmethod
    def execute(cls, mode, detector, model, colors) -> io.NodeOutput:
        if detector == "shapes":
            return reward(kind="geneval", mode=mode, detector="shapes")
        if not model.strip():
            raise ValueError(f"The detector {detector} needs a model. {MODEL}")
        found = {"kind": detector, "model": model_path(model), "colors": model_path(colors)}
        return reward(kind="geneval", mode=mode, detector=found)


class UniPicShapeEditReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "ShapeEdit",
            "Shape Edit",
            "Edits in the demo's world of shapes, judged by rule.",
            [
                io.Combo.Input(
                    "part",
                    options=["score", "success", "preservation", "partial"],
                    tooltip="success: is done what was asked? preservation: did the rest stay? score: their product. "
                    "partial: the same, but half of what was asked counts half.",
                )
            ],
        )

    @classmethod
    def execute(cls, part) -> io.NodeOutput:
        return reward(kind="shape_edit", part=part)


class UniPicPreferenceReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "Preference",
            "Preference",
            "How well a picture fits its prompt, by CLIP, or how well people would like it, by PickScore and its kin.",
            [
                io.String.Input("model", default="yuvalkirstain/PickScore_v1", tooltip=f"A CLIP-type model. {MODEL}"),
                io.String.Input(
                    "processor",
                    default="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
                    tooltip="Where the model's processor is, if not in the model's own folder. Empty: there.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, processor) -> io.NodeOutput:
        return reward(kind="preference", model=model_path(model), processor=processor and model_path(processor))


class UniPicJudgeReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "Judge",
            "Judge",
            "A vision-language model as the judge, behind an OpenAI-compatible endpoint: vLLM, SGLang, any vendor.",
            [
                io.String.Input("url", default="http://127.0.0.1:8000/v1", tooltip="The endpoint's base address."),
                io.String.Input("model", default="Qwen/Qwen2.5-VL-7B-Instruct", tooltip="The model's name there."),
                io.Combo.Input(
                    "rubric",
                    options=list(RUBRICS),
                    tooltip="What the judge is asked. gedit (0 to 10) and imgedit (1 to 5) are for edits.",
                ),
                io.String.Input(
                    "api_key",
                    default="",
                    tooltip="The name of the environment variable that holds the key, if one is needed. Never the key.",
                ),
                io.Int.Input("concurrency", default=8, min=1, max=256, tooltip="Questions at a time."),
                io.Float.Input(
                    "patience",
                    default=300.0,
                    min=1.0,
                    max=86400.0,
                    tooltip="Seconds in which a server that is down or busy is asked again before a picture has no "
                    "verdict.",
                ),
                io.Boolean.Input(
                    "cache",
                    default=True,
                    tooltip="Keep answers in output/unipic/answers: equal questions are paid for once.",
                ),
                price("input_price", "reads, pictures too"),
                price("output_price", "writes"),
            ],
        )

    @classmethod
    def execute(
        cls, url, model, rubric, api_key, concurrency, patience, cache, input_price, output_price
    ) -> io.NodeOutput:
        answers = f"{folder_paths.get_output_directory()}/unipic/answers" if cache else ""
        spec = {"url": url, "model": model, "rubric": rubric, "api_key": api_key, "cache": answers}
        prices = [input_price, output_price]
        return reward(kind="judge", **spec, concurrency=concurrency, patience=patience, prices=prices)


def price(name: str, what: str) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=0.0,
        min=0.0,
        max=10000.0,
        step=0.01,
        tooltip=f"Of a million tokens that the judge {what}, in any currency. With prices, a run says what it cost.",
    )


class UniPicHTTPReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "HTTP",
            "HTTP",
            "A reward that another machine computes: python -m unipic_core.rewards.server there, or your own server.",
            [
                io.String.Input("url", default="http://127.0.0.1:8000/score", tooltip="Where pictures are sent."),
                io.Int.Input("batch", default=8, min=1, max=1024, tooltip="Pictures in a request."),
                io.Int.Input("concurrency", default=4, min=1, max=256, tooltip="Requests at a time."),
                io.Float.Input(
                    "patience",
                    default=300.0,
                    min=1.0,
                    max=86400.0,
                    tooltip="Seconds in which a server that is down or busy is asked again before pictures have no "
                    "verdict.",
                ),
            ],
        )

    @classmethod
    def execute(cls, url, batch, concurrency, patience) -> io.NodeOutput:
        return reward(kind="http", url=url, batch=batch, concurrency=concurrency, patience=patience)


class UniPicCanaryReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "Canary",
            "Canary",
            "A plain statistic of the pictures. With a negative weight in UniPic Combine Rewards it keeps a run from "
            "drifting there; every run reports all of them anyway.",
            [
                io.Combo.Input(
                    "statistic",
                    options=list(STATISTICS),
                    tooltip="Share of edges, share of dark pixels, or mean saturation; all from 0 to 1.",
                )
            ],
        )

    @classmethod
    def execute(cls, statistic) -> io.NodeOutput:
        return reward(kind="canary", statistic=statistic)
