WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import UniPicExtension

    return UniPicExtension()
