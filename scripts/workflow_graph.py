"""A graph written once in Python and saved in both of ComfyUI's formats: the editor's (litegraph JSON) and the API's.

Nodes stand in columns, in the order in which they are added. The server's /object_info says which widgets a node has.
"""

from dataclasses import dataclass, field

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
TITLE, ROW, WIDGET, TEXT_BOX, GAP, MARGIN = 30, 20, 24, 110, 30, 20
PREVIEW = 340
COLUMN_GAP = 80
NOTE_COLOR = {"color": "#432", "bgcolor": "#653"}
GROUP_LOOK = {"color": "#3f789e", "font_size": 22, "flags": {}}
PACK_ID = "unipic-comfyui"


@dataclass
class Output:
    """One output of a node, to be passed as the input of another."""

    node: "Node"
    slot: int


@dataclass
class Node:
    id: int
    kind: str
    info: dict
    inputs: dict
    title: str | None
    column: int
    pos: list[int] = field(default_factory=lambda: [0, 0])
    size: list[int] = field(default_factory=lambda: [0, 0])

    def __getitem__(self, output: str | int) -> Output:
        return Output(self, output if isinstance(output, int) else self.info["output_name"].index(output))

    def specs(self) -> list[tuple[str, str, dict]]:
        """(name, type, options) of each input in the editor's order."""
        found = []
        for section in ("required", "optional"):
            for name in self.info["input_order"].get(section, []):
                kind, options = (*self.info["input"][section][name], {})[:2]
                if isinstance(kind, list):
                    kind, options = "COMBO", {"options": kind, **options}
                if options.get("options"):
                    options = {"default": options["options"][0], **options}
                found.append((name, kind, options))
        return found

    def widgets(self) -> list[tuple[str, dict, object]]:
        """(name, options, value) of each input that the editor shows as a widget."""
        shown = []
        for name, kind, options in self.specs():
            if kind in WIDGET_TYPES and not options.get("forceInput"):
                value = self.inputs.get(name)
                if isinstance(value, Output) and kind == "COMBO":
                    value = ""  # the first of the files that a server happens to have is nothing to save
                elif value is None or isinstance(value, Output):
                    value = options.get("default", "")
                shown.append((name, options, value))
        return shown


class Graph:
    def __init__(self, object_info: dict):
        self.object_info = object_info
        self.columns: list[tuple[str, int]] = []
        self.nodes: list[Node] = []

    def column(self, title: str, width: int = 330) -> None:
        """Starts a new column, framed by a group of this title."""
        self.columns.append((title, width))

    def node(self, kind: str, title: str | None = None, **inputs) -> Node:
        """Adds a node below the last one; inputs are widget values or other nodes' outputs, the rest are defaults."""
        node = self._add(kind, self.object_info[kind], inputs, title)
        unknown = set(inputs) - {name for name, _, _ in node.specs()}
        if unknown:
            raise ValueError(f"{kind} has no input {sorted(unknown)}")
        return node

    def note(self, text: str, height: int) -> None:
        info = {"input": {}, "input_order": {}, "output": [], "output_name": []}
        self._add("MarkdownNote", info, {"text": text}, "Note").size = [0, height]

    def _add(self, kind: str, info: dict, inputs: dict, title: str | None) -> Node:
        node = Node(len(self.nodes) + 1, kind, info, inputs, title, len(self.columns))
        self.nodes.append(node)
        return node

    def api(self) -> dict:
        graph = {}
        for node in self.nodes:
            if node.kind == "MarkdownNote":
                continue
            inputs = {name: value for name, _, value in node.widgets()}
            for name, value in node.inputs.items():
                inputs[name] = [str(value.node.id), value.slot] if isinstance(value, Output) else value
            graph[str(node.id)] = {"inputs": inputs, "class_type": node.kind}
        return graph

    def ui(self) -> dict:
        groups = self._lay_out()
        links = []
        for node in self.nodes:
            for slot, (name, _, _) in enumerate(node.specs()):
                source = node.inputs.get(name)
                if isinstance(source, Output):
                    kind = source.node.info["output"][source.slot]
                    links.append([len(links) + 1, source.node.id, source.slot, node.id, slot, kind])
        return {
            "last_node_id": len(self.nodes),
            "last_link_id": len(links),
            "nodes": [self._saved_node(order, node, links) for order, node in enumerate(self.nodes)],
            "links": links,
            "groups": groups,
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def _saved_node(self, order: int, node: Node, links: list[list]) -> dict:
        widgets = {name for name, _, _ in node.widgets()}
        incoming = {link[4]: link[0] for link in links if link[3] == node.id}
        inputs = []
        for slot, (name, kind, _) in enumerate(node.specs()):
            widget = {"widget": {"name": name}} if name in widgets else {}
            inputs.append({"name": name, "type": kind, **widget, "link": incoming.get(slot)})
        outputs = [
            {"name": name, "type": kind, "links": [link[0] for link in links if link[1:3] == [node.id, slot]]}
            for slot, (name, kind) in enumerate(zip(node.info["output_name"], node.info["output"], strict=True))
        ]
        note = node.kind == "MarkdownNote"
        pack = PACK_ID if node.kind.startswith("UniPic") else "comfy-core"
        return {
            "id": node.id,
            "type": node.kind,
            **({"title": node.title} if node.title else {}),
            "pos": node.pos,
            "size": node.size,
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "properties": {} if note else {"Node name for S&R": node.kind, "cnr_id": pack},
            "widgets_values": [node.inputs["text"]] if note else self._widget_values(node),
            **(NOTE_COLOR if note else {}),
        }

    @staticmethod
    def _widget_values(node: Node) -> list:
        values = []
        for _, options, value in node.widgets():
            values.append(value)
            if options.get("control_after_generate"):
                values.append("fixed")
            if options.get("image_upload"):
                values.append("image")
        return values

    def _lay_out(self) -> list[dict]:
        """Sets each node's place and size and returns the columns' frames."""
        groups, left = [], 0
        for number, (title, width) in enumerate(self.columns, 1):
            top = TITLE
            for node in self.nodes:
                if node.column == number:
                    node.pos, node.size = [left, top], [width, node.size[1] or self._height(node)]
                    top += node.size[1] + TITLE + GAP
            frame = [left - MARGIN, -TITLE - MARGIN, width + 2 * MARGIN, top + 2 * MARGIN - GAP]
            groups.append({"id": number, "title": title, "bounding": frame, **GROUP_LOOK})
            left += width + COLUMN_GAP
        return groups

    @staticmethod
    def _height(node: Node) -> int:
        widgets = node.widgets()
        sockets = len(node.specs()) - len(widgets)
        height = 10 + ROW * max(sockets, len(node.info["output"]))
        for _, options, _ in widgets:
            rows = 1 + bool(options.get("control_after_generate")) + bool(options.get("image_upload"))
            height += TEXT_BOX if options.get("multiline") else WIDGET * rows
        shows_picture = node.kind in ("LoadImage", "SaveImage")
        return height + (PREVIEW if shows_picture else 0)
